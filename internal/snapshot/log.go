package snapshot

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/internal/config"
	"countersign/internal/record"
)

// Defaults and bounds of log.outputs, each with its reason in docs/logs.md.
const (
	defaultSyslog  = "unix:/dev/log"
	defaultKeep    = 7
	maxKeep        = 1000
	minRotateBytes = 64 << 10
	minRotateAge   = time.Minute
	minQueue       = 64 << 10
	maxQueue       = 1 << 30
	maxOutputs     = 16
)

var whichRequests = map[string]record.Which{"all": record.All, "errors": record.Errors, "refused": record.Refused, "none": record.None}

var logFormats = map[string]record.Format{"json": record.JSON, "alb_access": record.ALBAccess, "alb_connection": record.ALBConnection, "combined": record.Combined}

// facilities are those of RFC 5424 section 6.2.1, by the names that syslog.conf has for them.
var facilities = map[string]int{"kern": 0, "user": 1, "mail": 2, "daemon": 3, "auth": 4, "syslog": 5, "lpr": 6, "news": 7, "uucp": 8, "cron": 9,
	"authpriv": 10, "ftp": 11, "local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20, "local5": 21, "local6": 22, "local7": 23}

// logs compiles the log section. It comes last: a log must not be a file that something was read from.
func (c *compiler) logs(s *Snapshot, conf *config.Log) {
	s.Outputs = []record.Settings{{Name: "stdout"}}
	if conf == nil {
		return
	}
	s.Log, s.PerReason = whichRequests[conf.Requests], conf.PerReason
	if len(conf.Outputs) == 0 {
		return
	}
	if n := len(conf.Outputs); n > maxOutputs {
		c.problem("log.outputs", "each of them writes every line", "found %d outputs, expected at most %d", n, maxOutputs)
		return
	}
	s.Outputs = nil
	taken := make(map[string]int)
	for i, o := range conf.Outputs {
		path := config.Path("log.outputs", i)
		settings := c.logOutput(path, o)
		if before, twice := taken[settings.Name]; twice && settings.Place != record.ToSyslog {
			c.problem(path, "give one of them another place: lines of two formats in one are of no use", "%s is the place of output %d already", settings.Name, before)
		}
		taken[settings.Name] = i
		if slices.Contains(s.Outputs, settings) {
			c.problem(path, "remove one of them", "this output says the same as one before it")
		}
		s.Outputs = append(s.Outputs, settings)
	}
}

func (c *compiler) logOutput(path string, o *config.LogOutput) record.Settings {
	s := record.Settings{Name: o.To, Format: logFormats[o.Format], Queue: int(min(o.Queue, maxQueue))}
	if o.Queue != 0 && (o.Queue < minQueue || o.Queue > maxQueue) {
		c.problem(config.Path(path, "queue"), "", "found %d bytes, expected between 64KiB and 1GiB", o.Queue)
	}
	// A setting of another kind of output would be ignored, and its author believe that it is not.
	only := func(key, of string, given bool) {
		if given && o.To != of && o.To != "" {
			c.problem(config.Path(path, key), "remove it, or set to: "+of, "%s is for outputs to %s, found to: %s", key, of, o.To)
		}
	}
	only("path", "file", o.Path != "")
	only("rotate", "file", o.Rotate != nil)
	only("address", "syslog", o.Address != "")
	only("facility", "syslog", o.Facility != "")
	switch o.To {
	case "stderr":
		s.Place = record.Stderr
	case "file":
		s.Place = record.ToFile
		s.File = c.logFile(path, o)
		s.Name = "file:" + s.File.Path
	case "syslog":
		s.Place = record.ToSyslog
		s.Syslog = c.syslog(config.Path(path, "address"), o.Address)
		s.Name = "syslog:" + s.Syslog.Network + ":" + s.Syslog.Address
		s.Syslog.Facility = facilities["local0"]
		if o.Facility != "" {
			s.Syslog.Facility = facilities[o.Facility]
		}
	}
	if len(o.What) > 0 {
		for i, what := range o.What {
			if what == "requests" && !s.Format.Requests() || what == "connections" && !s.Format.Connections() {
				c.problem(config.Path(config.Path(path, "what"), i), "take format: json, or the format made for them", "format %s has no lines for %s", o.Format, what)
			}
		}
		s.NoRequests, s.NoConnections = !slices.Contains(o.What, "requests"), !slices.Contains(o.What, "connections")
	}
	if o.Requests != "" {
		s.Own, s.Which = true, whichRequests[o.Requests]
	}
	return s
}

func (c *compiler) logFile(path string, o *config.LogOutput) (s record.FileSettings) {
	at := config.Path(path, "path")
	if o.Path == "" {
		c.problem(path, "add path:", "an output to a file needs a path")
		return s
	}
	full, ok := c.expand(at, o.Path)
	if !ok {
		return s
	}
	if !filepath.IsAbs(full) {
		full = filepath.Join(c.Dir, full)
	}
	s.Path = filepath.Clean(full)
	dir := filepath.Dir(s.Path)
	if st, err := os.Stat(dir); err != nil {
		c.problem(at, "make it: mkdir -m 0750 "+dir, "the folder of %s cannot be used: %s", o.Path, cause(err))
	} else if !st.IsDir() {
		c.problem(at, "", "%s is not a folder", dir)
	}
	if st, err := os.Stat(s.Path); err == nil && !st.Mode().IsRegular() {
		c.problem(at, "for standard output use to: stdout", "%s is not a regular file", o.Path)
	}
	if main, err := filepath.Abs(c.file.Name); err == nil && sameFile(main, s.Path) {
		c.problem(at, "give the log a file of its own", "%s is the configuration file", o.Path)
	}
	if c.reads(s.Path) {
		c.problem(at, "give the log a file of its own", "%s is a file that this configuration reads", o.Path)
	}
	if r := o.Rotate; r != nil {
		at := config.Path(path, "rotate")
		s.Bytes, s.Age, s.Keep, s.Compress = int64(r.Bytes), time.Duration(r.Age), r.Keep, r.Compress
		if s.Keep == 0 {
			s.Keep = defaultKeep
		}
		if s.Bytes == 0 && s.Age == 0 {
			c.problem(at, "add bytes: or age:", "nothing says when to rotate")
		}
		if s.Bytes != 0 && s.Bytes < minRotateBytes {
			c.problem(config.Path(at, "bytes"), "", "found %d bytes, expected at least 64KiB", s.Bytes)
		}
		if s.Age != 0 && s.Age < minRotateAge {
			c.problem(config.Path(at, "age"), "", "found %s, expected at least 1m", s.Age)
		}
		if s.Keep > maxKeep {
			c.problem(config.Path(at, "keep"), "", "found %d files, expected at most %d", s.Keep, maxKeep)
		}
	}
	return s
}

// sameFile reports whether two paths are, or would be, one file.
// reads reports whether one of the files that were read is this one, by whatever name.
func (c *compiler) reads(full string) bool {
	if _, ok := c.sums[full]; ok {
		return true
	}
	one, err := os.Stat(full)
	if err != nil {
		return false
	}
	for read := range c.sums {
		if other, err := os.Stat(read); err == nil && os.SameFile(one, other) {
			return true
		}
	}
	return false
}

func sameFile(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

func (c *compiler) syslog(at, address string) (s record.SyslogSettings) {
	const expected = "udp://host:port, tcp://host:port or unix:/path"
	if address == "" {
		address = defaultSyslog
	}
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if path = strings.TrimPrefix(path, "//"); !filepath.IsAbs(path) {
			c.problem(at, "", "found %q, expected %s", address, expected)
		}
		return record.SyslogSettings{Network: "unix", Address: filepath.Clean(path)}
	}
	network, hostport, ok := strings.Cut(address, "://")
	host, port, err := net.SplitHostPort(hostport)
	n, perr := strconv.Atoi(port)
	switch {
	case network == "tls":
		c.problem(at, "send to a relay on this machine that speaks TLS, by unix: or tcp: to loopback", "syslog over TLS is known, but not supported by this version")
	case !ok || network != "udp" && network != "tcp" || err != nil || host == "" || perr != nil || n < 1 || n > 65535:
		c.problem(at, "", "found %q, expected %s", address, expected)
	}
	return record.SyslogSettings{Network: network, Address: hostport}
}
