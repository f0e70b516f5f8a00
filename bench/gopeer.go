package main

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// goPeer is a peer that is written in Go and built here from its module.
type goPeer struct {
	kind, module, version, pkg string
}

// goPeers are named by exact versions: what is newest may not be obtainable everywhere.
var goPeers = []goPeer{
	{"caddy", "github.com/caddyserver/caddy/v2", "v2.11.9", "./cmd/caddy"},
	{"traefik", "github.com/traefik/traefik/v3", "v3.5.3", "./cmd/traefik"},
}

// goTargets finds or builds those of them that are wanted. The second result says what is missing.
func (b *bench) goTargets(ctx context.Context, wanted func(kind string) bool, build bool, cores int) (found []*target, missing []string) {
	for _, p := range goPeers {
		if !wanted(p.kind) {
			continue
		}
		binary, version, err := p.find(ctx, build, b.say)
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %s", p.kind, err))
			continue
		}
		short := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
		t := &target{kind: p.kind, Name: p.kind + "-" + strings.Join(short[:min(2, len(short))], "."), Version: version, argv: []string{binary},
			main: true, env: []string{"GOMAXPROCS=" + strconv.Itoa(cores)}}
		if info, err := buildinfo.ReadFile(binary); err == nil {
			t.TLS = info.GoVersion + " crypto/tls"
		}
		found = append(found, t)
	}
	return found, missing
}

// find is the program: BENCH_CADDY or BENCH_TRAEFIK, or what was built before, or what is built now.
func (p goPeer) find(ctx context.Context, build bool, tell func(string, ...any)) (binary, version string, err error) {
	name := "BENCH_" + strings.ToUpper(p.kind)
	if binary = os.Getenv(name); binary != "" {
		if !exists(binary) {
			return "", "", fmt.Errorf("%s says %s, and there is none", name, binary)
		}
		info, err := buildinfo.ReadFile(binary)
		if err != nil {
			return "", "", fmt.Errorf("%s says %s, which is no Go program: %w", name, binary, err)
		}
		return binary, info.Main.Version, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", "", err
	}
	compiler := strings.TrimSpace(say(ctx, "go", "env", "GOVERSION"))
	binary = filepath.Join(cache, "countersign-bench", fmt.Sprintf("%s-%s-%s", p.kind, p.version, compiler))
	if exists(binary) {
		return binary, p.version, nil
	}
	if !build {
		return "", "", fmt.Errorf("%s is not built yet (make bench builds it, once), and %s is not set", binary, name)
	}
	tell("building %s %s, once; it takes some minutes", p.kind, p.version)
	if err := p.build(ctx, binary); err != nil {
		return "", "", fmt.Errorf("%s %s could not be built: %w; set %s to a program of yours", p.module, p.version, err, name)
	}
	return binary, p.version, nil
}

// build builds the module as its own main module, in the folder of the module cache: with the versions, replacements and
// checksums that it has itself, which go install would refuse.
func (p goPeer) build(ctx context.Context, binary string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", p.module+"@"+p.version).Output()
	var module struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &module); jsonErr != nil || module.Dir == "" {
		return errors.Join(err, firstLine(fmt.Errorf("%s", module.Error)))
	}
	if err := os.MkdirAll(filepath.Dir(binary), 0o755); err != nil {
		return err
	}
	var said output
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", binary+".new", p.pkg)
	cmd.Dir, cmd.Env = module.Dir, append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, tail(said.String(), 400))
	}
	return os.Rename(binary+".new", binary)
}
