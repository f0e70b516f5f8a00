package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"text/template"
	"time"
)

// TestTuned looks for what the peers' manuals advise for these workloads.
func TestTuned(t *testing.T) {
	render := func(name string, log bool) string {
		tmpl, err := template.ParseFS(templates, "peers/"+name)
		if err != nil {
			t.Fatal(err)
		}
		var w bytes.Buffer
		f := filling{Kind: "main", Host: host, Log: log, HasStream: true, addr: map[string]string{"log": "127.0.0.1:4445"}}
		if err := tmpl.Execute(&w, f); err != nil {
			t.Fatal(err)
		}
		return w.String()
	}
	for name, wanted := range map[string][]string{
		"haproxy.cfg.tmpl": {"\n  tune.pipesize 1048576\n", "\n  ssl-load-extra-files none\n", "\n  log ring@access daemon\n", "\n  server drain 127.0.0.1:4445\n",
			"\n  http-request set-header X-SSL-Client-Cert %[var(sess.cert)]\n"},
		"nginx.conf.tmpl": {"\n  client_body_buffer_size 64k;\n", "\n  proxy_buffers 8 64k;\n", "\n  proxy_buffer_size 1m;\n"},
	} {
		text := render(name, true)
		for _, want := range wanted {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q:\n%s", name, want, text)
			}
		}
	}
	haproxy := render("haproxy.cfg.tmpl", true)
	for line := range strings.Lines(haproxy) {
		if strings.Contains(line, "set-header X-SSL-") && strings.Contains(line, "ssl_c_") {
			t.Errorf("HAProxy renders anew for each request: %s", line)
		}
	}
	for line := range strings.Lines(render("haproxy.cfg.tmpl", false)) {
		if word := strings.Fields(line); len(word) > 0 && (word[0] == "log" || word[0] == "ring" || strings.HasSuffix(line, "log\n")) && word[0] != "#" {
			t.Errorf("HAProxy without access logs has %s", line)
		}
	}
}

// TestDrain: the log that HAProxy sends goes to a file, and what it lost is told.
func TestDrain(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	i := &instance{target: &target{Name: "haproxy-x", kind: "haproxy"}, dir: dir, proc: &process{ended: make(chan struct{})}}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := i.logged(ended); err != nil {
		t.Errorf("without a log: %v", err)
	}
	var err error
	if i.logs, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	defer i.logs.Close()
	go serveAll(i.logs, i.takeLog)
	if err := i.logged(ended); err == nil {
		t.Error("a log without a line counts as one")
	}
	c, err := net.Dial("tcp", i.logs.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	arrive := func(text string, lines int64) {
		t.Helper()
		fmt.Fprint(c, text)
		for end := time.Now().Add(patience); i.lines.Load() < lines; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d lines after %v; expected %d", i.lines.Load(), patience, lines)
			}
		}
	}
	const none = "    buf0 : type=buffer, 9 dropped, x\n    access     : type=buffer, 0 dropped, access\n"
	var said atomic.Value
	said.Store(none)
	socket, err := net.Listen("unix", filepath.Join(dir, "haproxy.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	go serveAll(socket, func(c net.Conn) {
		if command, _ := bufio.NewReader(c).ReadString('\n'); command == "show events\n" {
			fmt.Fprint(c, said.Load())
		}
	})
	arrive("one\ntwo\n", 2)
	if err := i.logged(t.Context()); err != nil {
		t.Error(err)
	}
	if err := i.complete(); err != nil {
		t.Errorf("a log with all lines: %v", err)
	}
	for _, text := range []string{"    access     : type=buffer, 7 dropped, access\n", "Unknown command\n"} {
		said.Store(text)
		if err := i.complete(); err == nil || !strings.Contains(err.Error(), "has lost lines") {
			t.Errorf("a ring that says %q: %v", text, err)
		}
	}
	said.Store(none)
	arrive("3772 events dropped\n", 3)
	if err := i.complete(); err == nil || !strings.Contains(err.Error(), "1 gaps after 3 lines") {
		t.Errorf("a log with a gap: %v", err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(dir, "log", "access.log"))
		if string(text) == "one\ntwo\n3772 events dropped\n" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the file has %q, %v", text, err)
		}
	}
}

// TestForeignDebian: a tree without a loader, or with those of two architectures, is skipped with a reason.
func TestForeignDebian(t *testing.T) {
	root := t.TempDir()
	t.Setenv("BENCH_DEBIAN", root)
	file := func(name string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file("usr/sbin/nginx")
	for _, step := range []struct{ add, want string }{
		{"usr/sbin/x", "has the loaders []; expected one"},
		{"usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1", "nginx: " + root + "/usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1 "},
		{"usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "expected one, of this machine's architecture"},
	} {
		file(step.add)
		if _, missing := peers(t.Context()); !strings.Contains(strings.Join(missing, "\n"), step.want) {
			t.Errorf("with %s: %q; expected %q", step.add, missing, step.want)
		}
	}
}
