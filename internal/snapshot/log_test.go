package snapshot

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/config"
	"countersign/internal/record"
)

// compileLog compiles a log section alone, in a folder with a file access.log, a file server.key that was read, and a
// folder named folder.
func compileLog(t *testing.T, text string) (*Snapshot, config.Problems, string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"access.log", "server.key", "countersign.yaml"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "server.key"), filepath.Join(dir, "linked.key")); err != nil {
		t.Fatal(err)
	}
	f, problems := config.Parse(filepath.Join(dir, "countersign.yaml"), []byte("log: "+text+"\n"))
	c := &compiler{file: f, sums: map[string]Sum{filepath.Join(dir, "server.key"): {}}}
	c.Dir = dir
	c.problems = problems
	s := new(Snapshot)
	c.logs(s, f.Partial.Log)
	return s, c.problems, dir
}

func TestLogRefuses(t *testing.T) {
	t.Setenv("LOGS", "")
	for name, c := range map[string]struct{ text, path, want string }{
		"to what":              {"{outputs: [{format: json}]}", "log.outputs[0]", `missing required key "to"`},
		"unknown place":        {"{outputs: [{to: kafka}]}", "log.outputs[0].to", `found "kafka", expected one of: stdout, stderr, file, syslog`},
		"unknown format":       {"{outputs: [{to: stdout, format: alb}]}", "log.outputs[0].format", `found "alb"`},
		"no outputs":           {"{outputs: []}", "log.outputs", "empty setting"},
		"seventeen":            {"{outputs: [" + strings.Repeat("{to: syslog},", 17) + "]}", "log.outputs", "found 17 outputs, expected at most 16"},
		"twice":                {"{outputs: [{to: stdout}, {to: stdout, format: combined}]}", "log.outputs[1]", "stdout is the place of output 0 already"},
		"one file twice":       {"{outputs: [{to: file, path: access.log}, {to: file, path: folder/../access.log}]}", "log.outputs[1]", "is the place of output 0 already"},
		"one syslog twice":     {"{outputs: [{to: syslog}, {to: syslog}]}", "log.outputs[1]", "says the same"},
		"file without path":    {"{outputs: [{to: file}]}", "log.outputs[0]", "an output to a file needs a path"},
		"path of stdout":       {"{outputs: [{to: stdout, path: a.log}]}", "log.outputs[0].path", "path is for outputs to file, found to: stdout"},
		"rotated syslog":       {"{outputs: [{to: syslog, rotate: {bytes: 1MiB}}]}", "log.outputs[0].rotate", "rotate is for outputs to file"},
		"address of a file":    {"{outputs: [{to: file, path: access.log, address: 'udp://a:1'}]}", "log.outputs[0].address", "address is for outputs to syslog"},
		"facility of a file":   {"{outputs: [{to: file, path: access.log, facility: mail}]}", "log.outputs[0].facility", "facility is for outputs to syslog"},
		"no folder":            {"{outputs: [{to: file, path: none/access.log}]}", "log.outputs[0].path", "the folder of none/access.log cannot be used: no such file or directory"},
		"folder is a file":     {"{outputs: [{to: file, path: server.key/access.log}]}", "log.outputs[0].path", "is not a folder"},
		"a folder":             {"{outputs: [{to: file, path: folder}]}", "log.outputs[0].path", "is not a regular file"},
		"the terminal":         {"{outputs: [{to: file, path: /dev/null}]}", "log.outputs[0].path", "/dev/null is not a regular file"},
		"the key":              {"{outputs: [{to: file, path: server.key}]}", "log.outputs[0].path", "server.key is a file that this configuration reads"},
		"a link to the key":    {"{outputs: [{to: file, path: linked.key}]}", "log.outputs[0].path", "linked.key is a file that this configuration reads"},
		"the configuration":    {"{outputs: [{to: file, path: countersign.yaml}]}", "log.outputs[0].path", "is the configuration file"},
		"variable":             {"{outputs: [{to: file, path: '${LOGS}/a.log'}]}", "log.outputs[0].path", "the environment variable in ${LOGS} is not set"},
		"rotate when":          {"{outputs: [{to: file, path: access.log, rotate: {keep: 3}}]}", "log.outputs[0].rotate", "nothing says when to rotate"},
		"small":                {"{outputs: [{to: file, path: access.log, rotate: {bytes: 1000}}]}", "log.outputs[0].rotate.bytes", "found 1000 bytes, expected at least 64KiB"},
		"soon":                 {"{outputs: [{to: file, path: access.log, rotate: {age: 1s}}]}", "log.outputs[0].rotate.age", "found 1s, expected at least 1m"},
		"many":                 {"{outputs: [{to: file, path: access.log, rotate: {age: 1h, keep: 1001}}]}", "log.outputs[0].rotate.keep", "found 1001 files, expected at most 1000"},
		"short queue":          {"{outputs: [{to: stdout, queue: 1KiB}]}", "log.outputs[0].queue", "found 1024 bytes, expected between 64KiB and 1GiB"},
		"long queue":           {"{outputs: [{to: stdout, queue: 2GiB}]}", "log.outputs[0].queue", "expected between 64KiB and 1GiB"},
		"access: connections":  {"{outputs: [{to: stdout, format: alb_access, what: [connections]}]}", "log.outputs[0].what[0]", "format alb_access has no lines for connections"},
		"connection: requests": {"{outputs: [{to: stdout, format: alb_connection, what: [connections, requests]}]}", "log.outputs[0].what[1]", "format alb_connection has no lines for requests"},
		"combined":             {"{outputs: [{to: stdout, format: combined, what: [connections]}]}", "log.outputs[0].what[0]", "format combined has no lines for connections"},
		"no scheme":            {"{outputs: [{to: syslog, address: 'loghost:514'}]}", "log.outputs[0].address", `found "loghost:514", expected udp://host:port`},
		"no port":              {"{outputs: [{to: syslog, address: 'udp://loghost'}]}", "log.outputs[0].address", `found "udp://loghost"`},
		"port":                 {"{outputs: [{to: syslog, address: 'tcp://loghost:70000'}]}", "log.outputs[0].address", `found "tcp://loghost:70000"`},
		"no host":              {"{outputs: [{to: syslog, address: 'udp://:514'}]}", "log.outputs[0].address", `found "udp://:514"`},
		"relative socket":      {"{outputs: [{to: syslog, address: 'unix:dev/log'}]}", "log.outputs[0].address", `found "unix:dev/log"`},
		"tls":                  {"{outputs: [{to: syslog, address: 'tls://loghost:6514'}]}", "log.outputs[0].address", "syslog over TLS is known, but not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems, _ := compileLog(t, c.text)
			if !slices.ContainsFunc(problems, func(p config.Problem) bool {
				return !p.Warning && p.Path == c.path && strings.Contains(p.Message, c.want)
			}) {
				t.Errorf("no problem at %s with %q; got:\n%v", c.path, c.want, problems)
			}
		})
	}
}

func TestLog(t *testing.T) {
	t.Setenv("LOGS", "folder")
	s, problems, dir := compileLog(t, `{requests: errors, per_reason: 5, outputs: [
  {to: stdout},
  {to: stderr, format: alb_connection, what: [connections], queue: 64KiB},
  {to: file, path: '${LOGS}/access.log', format: alb_access, requests: none, rotate: {bytes: 10MiB, age: 24h, compress: true}},
  {to: syslog, what: [requests]},
  {to: syslog, address: 'tcp://[::1]:601', facility: authpriv, format: combined},
  {to: syslog, address: 'unix:///run/log', facility: kern}]}`)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	path := filepath.Join(dir, "folder", "access.log")
	want := []record.Settings{
		{Name: "stdout"},
		{Name: "stderr", Place: record.Stderr, Format: record.ALBConnection, NoRequests: true, Queue: 64 << 10},
		{Name: "file:" + path, Place: record.ToFile, Format: record.ALBAccess, Own: true, Which: record.None,
			File: record.FileSettings{Path: path, Bytes: 10 << 20, Age: 24 * time.Hour, Keep: 7, Compress: true}},
		{Name: "syslog:unix:/dev/log", Place: record.ToSyslog, NoConnections: true, Syslog: record.SyslogSettings{Network: "unix", Address: "/dev/log", Facility: 16}},
		{Name: "syslog:tcp:[::1]:601", Place: record.ToSyslog, Format: record.Combined, Syslog: record.SyslogSettings{Network: "tcp", Address: "[::1]:601", Facility: 10}},
		{Name: "syslog:unix:/run/log", Place: record.ToSyslog, Syslog: record.SyslogSettings{Network: "unix", Address: "/run/log"}},
	}
	for i := range want {
		if i >= len(s.Outputs) || s.Outputs[i] != want[i] {
			t.Errorf("output %d:\n%+v, expected\n%+v", i, s.Outputs[i], want[i])
		}
	}
	if s.Log != record.Errors || s.PerReason != 5 || len(s.Outputs) != len(want) {
		t.Errorf("%v %d %d", s.Log, s.PerReason, len(s.Outputs))
	}
	// What was the whole section before there were outputs.
	s, problems, _ = compileLog(t, "{requests: refused}")
	if len(problems) > 0 || s.Log != record.Refused || !slices.Equal(s.Outputs, []record.Settings{{Name: "stdout"}}) {
		t.Errorf("%v %v %+v", problems, s.Log, s.Outputs)
	}
}
