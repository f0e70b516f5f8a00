package main

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"text/template"
	"time"
)

//go:embed peers/*.tmpl
var templates embed.FS

// partHosts is how many hosts one included file of ours may have.
const partHosts = 4000

// target is a proxy that can be measured.
type target struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	TLS     string `json:"tls"`
	// argv starts it; modern says that it is one of those the goals speak of.
	argv   []string
	modern bool
	// module is nginx's stream module; none says why there is no stream.
	module string
	stream bool
	kind   string // "countersign", "haproxy", "nginx", "caddy", "traefik"
	env    []string
	// main says that it runs the main workloads only; h2Directive that nginx knows http2 on; profiled that the agent is in it.
	main, h2Directive, profiled bool
	// eventLoop is for the experiment of that name.
	eventLoop bool
}

// instance is a running target.
type instance struct {
	*target
	dir  string
	proc *process
	fill filling
	addr map[string]string
	// stdout and stderr are where it writes; nil has the access log in a file and keeps the end of what else it says.
	stdout, stderr *os.File
	// logs is where HAProxy sends its access log; nil has none. lines have come, and gaps among them.
	logs        net.Listener
	lines, gaps atomic.Int64
	say         func(format string, args ...any)
}

// filling is what the templates are filled with.
type filling struct {
	Kind, Host, PKI, Dir string
	Threads              int
	Log, Root            bool
	Backends             backends
	StreamModule         string
	HasStream            bool
	// H2Directive says that nginx has a directive for HTTP/2 and no parameter of listen.
	H2Directive  bool
	EventLoop    bool
	Names, Parts []string
	// Routes are the numbers of the routes that every name has in kind "routes".
	Routes []int
	Part   int
	Listen string
	addr   map[string]string
}

// Addr is the address of one of the listeners.
func (f filling) Addr(name string) string { return f.addr[name] }

// Port is its port.
func (f filling) Port(name string) string {
	_, port, _ := net.SplitHostPort(f.addr[name])
	return port
}

// RoutePath is what the paths of a route begin with.
func (f filling) RoutePath(r int) string { return routePath(r) }

// routeHosts have routesOfHost each, which lead to upstreams of their own.
const (
	routeHosts   = 1000
	routesOfHost = 10
)

func routeHost(n int) string { return fmt.Sprintf("h%04d.routes.test", n) }

func routePath(r int) string { return fmt.Sprintf("/app%d/", r) }

// debian is where a Debian of newer programs is looked for: BENCH_DEBIAN, else a folder of the user's cache.
func debian() string {
	if dir := os.Getenv("BENCH_DEBIAN"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "countersign-bench", "sid")
}

var (
	haproxyVersion = regexp.MustCompile(`HAProxy version (\S+)`)
	haproxyTLS     = regexp.MustCompile(`Running on (?:SSL library|OpenSSL) version : (OpenSSL \S+)`)
	nginxVersion   = regexp.MustCompile(`nginx version: nginx/(\S+)`)
	nginxRunning   = regexp.MustCompile(`running with (OpenSSL [\d.]+)`)
	nginxTLS       = regexp.MustCompile(`built with (OpenSSL [\d.]+)`)
)

func first(re *regexp.Regexp, text string) string {
	if m := re.FindStringSubmatch(text); m != nil {
		return strings.TrimSpace(m[1])
	}
	return ""
}

// peers finds HAProxy and nginx: those of the machine, and those of a Debian tree, which are run by that tree's own
// loader and libraries and need neither chroot nor root. The second result says what is missing.
func peers(ctx context.Context) (found []*target, missing []string) {
	type place struct {
		env, root string
		modern    bool
	}
	seen := map[string]bool{}
	for _, p := range []place{{"", debian(), true}, {"BENCH_", "", false}} {
		for _, kind := range []string{"haproxy", "nginx"} {
			var argv []string
			modules := ""
			if p.root != "" {
				program := filepath.Join(p.root, "usr/sbin", kind)
				if _, err := os.Stat(program); err != nil {
					missing = append(missing, fmt.Sprintf("%s of a newer Debian: no %s; docs/performance.md says how to get it, or set BENCH_DEBIAN", kind, program))
					continue
				}
				loaders, _ := filepath.Glob(filepath.Join(p.root, "usr/lib/*-linux-gnu*/ld-linux*.so.*"))
				if len(loaders) != 1 {
					missing = append(missing, fmt.Sprintf("%s of a newer Debian: %s has the loaders %q; expected one, of this machine's architecture", kind, p.root, loaders))
					continue
				}
				argv = []string{loaders[0], "--library-path", filepath.Dir(loaders[0]), program}
				modules = p.root
			} else {
				program := os.Getenv(p.env + strings.ToUpper(kind))
				if program == "" {
					var err error
					if program, err = exec.LookPath(kind); err != nil {
						if program = "/usr/sbin/" + kind; !exists(program) {
							missing = append(missing, fmt.Sprintf("%s: not installed (apt-get install %s), and BENCH_%s is not set", kind, kind, strings.ToUpper(kind)))
							continue
						}
					}
				}
				argv = []string{program}
			}
			t := &target{kind: kind, argv: argv, modern: p.modern, stream: true}
			if kind == "haproxy" {
				text := say(ctx, append(argv, "-vv")...)
				t.Version, t.TLS = first(haproxyVersion, text), first(haproxyTLS, text)
			} else {
				text := say(ctx, append(argv, "-V")...)
				t.Version, t.TLS = first(nginxVersion, text), first(nginxTLS, text)
				t.h2Directive = !older(t.Version, 1, 25)
				if running := first(nginxRunning, text); running != "" {
					t.TLS = running
				}
				if module := modules + "/usr/lib/nginx/modules/ngx_stream_module.so"; strings.Contains(text, "--with-stream=dynamic") {
					if t.stream = exists(module); t.stream {
						t.module = module
					}
				} else {
					t.stream = strings.Contains(text, "--with-stream")
				}
			}
			if t.Version == "" {
				missing = append(missing, fmt.Sprintf("%s: %s does not tell its version", kind, strings.Join(argv, " ")))
				continue
			}
			short := strings.SplitN(t.Version, ".", 3)
			t.Name = kind + "-" + strings.Join(short[:min(2, len(short))], ".")
			if !seen[t.Name] {
				seen[t.Name] = true
				found = append(found, t)
			}
		}
	}
	return found, missing
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// older says whether a version is before major.minor.
func older(version string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(version, "%d.%d", &a, &b); err != nil {
		return true
	}
	return a < major || a == major && b < minor
}

// build builds the program as it is shipped, with the profile cmd/countersign/default.pgo if it is there.
func build(ctx context.Context, root, binary string, more ...string) error {
	args := append([]string{"build", "-trimpath", "-pgo=auto", "-o", binary}, more...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/countersign")...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building countersign: %w\n%s", err, out)
	}
	return nil
}

// ours builds the program from the tree.
func ours(ctx context.Context, root, dir string, cores int) (*target, error) {
	binary := filepath.Join(dir, "countersign")
	if err := build(ctx, root, binary); err != nil {
		return nil, err
	}
	commit := "no commit"
	if out, err := exec.CommandContext(ctx, "git", "-C", root, "rev-parse", "--short", "HEAD").Output(); err == nil {
		commit = strings.TrimSpace(string(out))
	}
	if strings.TrimSpace(say(ctx, "git", "-C", root, "status", "--porcelain", "--", "cmd", "internal", "go.mod")) != "" {
		commit += " and changes"
	}
	if exists(filepath.Join(root, "cmd/countersign/default.pgo")) {
		commit += ", default.pgo"
	}
	return &target{Name: "countersign", Version: commit, TLS: strings.TrimSpace(say(ctx, "go", "env", "GOVERSION")) + " crypto/tls",
		argv: []string{binary}, kind: "countersign", stream: true, env: []string{"GOMAXPROCS=" + strconv.Itoa(cores)}}, nil
}

// fill writes a template to a file.
func fill(name, file string, f filling) error {
	t, err := template.ParseFS(templates, "peers/"+name)
	if err != nil {
		return err
	}
	w, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer w.Close()
	return t.Execute(w, f)
}

// run starts a target in one of four kinds: "main" with a listener for each ordinary workload, "crl" with the large
// revocation list, "many" with many hosts, "routes" with many routes; and ours in two more, "sinks" and "no-sinks". It does
// not wait until it is ready.
func (b *bench) run(t *target, kind string) (*instance, error) {
	i, err := b.place(t, kind)
	if err != nil {
		return nil, err
	}
	return i, i.start(b)
}

// place makes the folder of a target, with its configuration.
func (b *bench) place(t *target, kind string) (*instance, error) {
	dir, err := os.MkdirTemp(b.dir, t.Name+"-"+kind+"-")
	if err != nil {
		return nil, err
	}
	// Apart from configuration and certificates, whose folder some watch for changes.
	if err := os.Mkdir(filepath.Join(dir, "log"), 0o700); err != nil {
		return nil, err
	}
	i := &instance{target: t, dir: dir, addr: map[string]string{}, say: b.say}
	for _, name := range []string{"https", "rsa", "both", "tls", "passthrough", "bare", "ops"} {
		if i.addr[name], err = freeAddress(); err != nil {
			return nil, err
		}
	}
	if t.kind == "countersign" {
		i.addr["bare"] = i.addr["https"] // it always says who the client is
	}
	if t.kind == "haproxy" && b.log {
		if i.logs, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
		i.addr["log"] = i.logs.Addr().String()
		go serveAll(i.logs, i.takeLog)
	}
	i.fill = filling{Kind: kind, Host: host, PKI: b.pki.dir, Dir: dir, Threads: len(b.proxyCores), Log: b.log, Root: os.Geteuid() == 0,
		Backends: b.backends, StreamModule: t.module, HasStream: t.stream, H2Directive: t.h2Directive, EventLoop: t.eventLoop, addr: i.addr}
	if kind == "many" {
		for n := range b.hosts {
			i.fill.Names = append(i.fill.Names, manyName(n))
		}
	}
	if kind == "routes" {
		for n := range routeHosts {
			i.fill.Names = append(i.fill.Names, routeHost(n))
		}
		for r := range routesOfHost {
			i.fill.Routes = append(i.fill.Routes, r)
		}
	}
	return i, i.configure()
}

func (i *instance) configure() error {
	switch i.kind {
	case "haproxy":
		return errors.Join(fill("haproxy.map.tmpl", i.dir+"/routes.map", i.fill),
			fill("haproxy.cfg.tmpl", i.dir+"/haproxy.cfg", i.fill))
	case "nginx":
		return fill("nginx.conf.tmpl", i.dir+"/nginx.conf", i.fill)
	case "caddy":
		return fill("Caddyfile.tmpl", i.dir+"/Caddyfile", i.fill)
	case "traefik":
		return errors.Join(fill("traefik.yaml.tmpl", i.dir+"/traefik.yaml", i.fill), fill("traefik-routes.yaml.tmpl", i.dir+"/routes.yaml", i.fill))
	}
	if strings.HasSuffix(i.fill.Kind, "sinks") {
		return fill("countersign-sinks.yaml.tmpl", i.dir+"/countersign.yaml", i.fill)
	}
	if i.fill.Kind == "routes" {
		return fill("countersign-routes.yaml.tmpl", i.dir+"/countersign.yaml", i.fill)
	}
	for at := 0; at < len(i.fill.Names); at += partHosts {
		part := i.fill
		part.Part = at / partHosts
		var err error
		if part.Listen, err = freeAddress(); err != nil {
			return err
		}
		i.fill.Parts = append(i.fill.Parts, part.Listen)
		part.Names = i.fill.Names[at:min(at+partHosts, len(i.fill.Names))]
		if err := fill("countersign-part.yaml.tmpl", fmt.Sprintf("%s/part%d.yaml", i.dir, part.Part), part); err != nil {
			return err
		}
	}
	return fill("countersign.yaml.tmpl", i.dir+"/countersign.yaml", i.fill)
}

// start starts the program; once more while it runs is HAProxy's way to reload: the new process tells the old one to
// finish.
func (i *instance) start(b *bench, more ...string) error {
	argv := i.argv
	switch i.kind {
	case "countersign":
		argv = append(argv[:len(argv):len(argv)], "run", "-c", i.dir+"/countersign.yaml")
	case "haproxy":
		argv = append(argv[:len(argv):len(argv)], "-db", "-f", i.dir+"/haproxy.cfg")
	case "nginx":
		argv = append(argv[:len(argv):len(argv)], "-p", i.dir, "-e", "stderr", "-c", i.dir+"/nginx.conf")
	case "caddy":
		argv = append(argv[:len(argv):len(argv)], "run", "--adapter", "caddyfile", "--config", i.dir+"/Caddyfile")
	case "traefik":
		argv = append(argv[:len(argv):len(argv)], "--configfile="+i.dir+"/traefik.yaml")
	}
	cmd := exec.Command(argv[0], append(argv[1:], more...)...)
	cmd.Dir, cmd.Env = i.dir, append(os.Environ(), i.env...)
	if i.kind == "caddy" || i.kind == "traefik" {
		cmd.Env = append(cmd.Env, "HOME="+i.dir, "XDG_CONFIG_HOME="+i.dir, "XDG_DATA_HOME="+i.dir)
	}
	if i.stderr != nil {
		cmd.Stderr = i.stderr
	}
	if i.stdout != nil {
		cmd.Stdout = i.stdout
	} else if b.log && i.kind == "countersign" {
		out, err := i.accessLog()
		if err != nil {
			return err
		}
		defer out.Close()
		cmd.Stdout = out
	}
	p, err := b.launch.start(cmd, b.proxyCores)
	if err != nil {
		return fmt.Errorf("starting %s: %w", i.Name, err)
	}
	i.proc = p
	return nil
}

func (i *instance) accessLog() (*os.File, error) {
	return os.OpenFile(i.dir+"/log/access.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// takeLog is the log server behind HAProxy's ring: it writes what comes to the file that the others write themselves.
func (i *instance) takeLog(c net.Conn) {
	out, err := i.accessLog()
	if err != nil {
		i.say("%s: its access log is lost: %v", i.Name, err)
		return
	}
	defer out.Close()
	in, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriterSize(out, 64<<10)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return
		}
		if i.lines.Add(1); bytes.HasSuffix(line, []byte(" dropped\n")) { // "7 events dropped"
			i.gaps.Add(1)
		}
		_, _ = w.Write(line)
		if in.Buffered() == 0 {
			_ = w.Flush()
		}
	}
}

// logged waits for the first line of a log that is sent.
func (i *instance) logged(ctx context.Context) error {
	for end := time.Now().Add(patience); i.logs != nil && i.lines.Load() == 0; {
		if time.Now().After(end) {
			return fmt.Errorf("%s has answered and sent no line of its access log in %v", i.Name, patience)
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// ringDropped is what HAProxy counts of lines for which the ring had no room, until it has room for a line that says so.
var ringDropped = regexp.MustCompile(`(?m)^ *access +: type=buffer, (\d+) dropped`)

// complete says whether every line of a log that is sent has found room; if not, it was less work than that of the others.
func (i *instance) complete() error {
	if i.logs == nil || i.alive() != nil {
		return nil
	}
	text, err := i.tell("show events\n")
	if waiting := first(ringDropped, text); err != nil || i.gaps.Load() > 0 || waiting != "0" {
		return fmt.Errorf("%s has lost lines of its access log: %d gaps after %d lines, %q lost now (%v); its figures are too good",
			i.Name, i.gaps.Load(), i.lines.Load(), waiting, err)
	}
	return nil
}

// stop ends it and removes its files.
func (i *instance) stop() {
	if err := i.complete(); err != nil {
		i.say("%v", err)
	}
	if i.logs != nil {
		i.logs.Close()
	}
	i.proc.stop()
	os.RemoveAll(i.dir)
}

// alive says why the target has ended, if it has.
func (i *instance) alive() error {
	select {
	case <-i.proc.ended:
		return fmt.Errorf("%s has ended (%v): %s", i.Name, i.proc.cmd.ProcessState, tail(i.proc.out.String(), 600))
	default:
		return nil
	}
}

// ready waits until ask succeeds, and returns how long that took.
func (i *instance) ready(ctx context.Context, limit time.Duration, ask func() error) (time.Duration, error) {
	begin := time.Now()
	for {
		err := ask()
		if err == nil {
			took := time.Since(begin)
			return took, i.logged(ctx)
		}
		if dead := i.alive(); dead != nil {
			return 0, dead
		}
		if time.Since(begin) > limit {
			return 0, fmt.Errorf("%s is not ready after %v: %w; it says: %s", i.Name, limit, err, tail(i.proc.out.String(), 600))
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// reload makes it read its configuration and certificates again.
func (i *instance) reload(b *bench) error {
	if i.kind != "haproxy" {
		return syscall.Kill(i.proc.pid, syscall.SIGHUP)
	}
	return i.start(b, "-sf", strconv.Itoa(i.proc.pid))
}

// replaceHost is HAProxy's way to change one certificate of a running process: by its socket.
func (i *instance) replaceHost(b *bench) error {
	file := filepath.Join(b.pki.dir, "many-all", manyName(0)+".pem")
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for _, command := range []string{fmt.Sprintf("set ssl cert %s <<\n%s\n", file, content), fmt.Sprintf("commit ssl cert %s\n", file)} {
		answer, err := i.tell(command)
		if err != nil {
			return err
		}
		if !strings.Contains(answer, "Transaction") && !strings.Contains(answer, "Success") {
			return fmt.Errorf("%s answers %.200q", i.Name, answer)
		}
	}
	return nil
}

// tell sends a command to HAProxy's socket and returns the answer.
func (i *instance) tell(command string) (string, error) {
	c, err := net.Dial("unix", i.dir+"/haproxy.sock")
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, command); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(c, 1<<16))
	return string(answer), err
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

var nextPort = 20000 + os.Getpid()%9000

// freeAddress returns an address nobody listens on, below the ports that the kernel gives to outgoing connections.
func freeAddress() (string, error) {
	for range 500 {
		nextPort++
		addr := "127.0.0.1:" + strconv.Itoa(nextPort)
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr, nil
		}
	}
	return "", fmt.Errorf("no free port on 127.0.0.1 after %d", nextPort)
}
