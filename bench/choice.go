package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// offer is a kind of client, by what it offers to a host that has an ECDSA and an RSA certificate.
type offer struct {
	name    string
	version uint16
	// suites are those of TLS 1.2, nil for all that crypto/tls has; it orders them itself, so that some are left out here.
	suites []uint16
	// signatures are signature algorithms as openssl s_client takes them. A client without is one of crypto/tls, which
	// offers its own: RSA-PSS, then ECDSA, then others of both.
	signatures string
	// want is the certificate it has to get.
	want x509.PublicKeyAlgorithm
}

var offers = []offer{
	{"TLS 1.3", tls.VersionTLS13, nil, "", x509.ECDSA},
	{"TLS 1.3, RSA signatures first", tls.VersionTLS13, nil, "RSA-PSS+SHA256:RSA-PSS+SHA384:RSA-PSS+SHA512:RSA+SHA256:ECDSA+SHA256", x509.ECDSA},
	{"TLS 1.2, ECDSA suites first", tls.VersionTLS12,
		[]uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, "", x509.ECDSA},
	{"TLS 1.2, RSA suites first", tls.VersionTLS12,
		[]uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}, "", x509.ECDSA},
	{"TLS 1.2, RSA suites only", tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, "", x509.RSA},
}

// served is the kind of certificate that a client of this kind gets who is answered.
func (o offer) served(ctx context.Context, c call, dir string) (x509.PublicKeyAlgorithm, error) {
	if o.signatures != "" {
		return o.servedOpenSSL(ctx, c, dir)
	}
	if c.suites = o.suites; o.version < tls.VersionTLS13 {
		c.max = o.version
	}
	state, err := once(c.addr, c.config(), get("/128"), make([]byte, 8<<10))
	if err != nil {
		return 0, err
	}
	if state.Version != o.version {
		return 0, fmt.Errorf("it chose %s; expected %s", tls.VersionName(state.Version), tls.VersionName(o.version))
	}
	return state.PeerCertificates[0].PublicKeyAlgorithm, nil
}

// servedOpenSSL is the same with openssl s_client, which speaks TLS 1.3 here and is the good client by files of dir; without
// that program the error is exec.ErrNotFound.
func (o offer) servedOpenSSL(ctx context.Context, c call, dir string) (x509.PublicKeyAlgorithm, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", "s_client", "-connect", c.addr, "-servername", host, "-tls1_3", "-sigalgs", o.signatures, "-ign_eof",
		"-cert", filepath.Join(dir, "good.pem"), "-key", filepath.Join(dir, "good.key"), "-cert_chain", filepath.Join(dir, "clients.pem"))
	cmd.Stdin = strings.NewReader(strings.Replace(string(get("/128")), "Accept: ", "Connection: close\r\nAccept: ", 1))
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return 0, err
	}
	if !strings.Contains(string(out), string(ok)) {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			out = failed.Stderr
		}
		return 0, fmt.Errorf("openssl s_client got no answer (%v): %q", err, tail(strings.TrimSpace(string(out)), 160))
	}
	p, _ := pem.Decode(out)
	if p == nil {
		return 0, errors.New("openssl s_client shows no certificate")
	}
	leaf, err := x509.ParseCertificate(p.Bytes)
	if err != nil {
		return 0, err
	}
	return leaf.PublicKeyAlgorithm, nil
}

// choice is which of an RSA-2048 and an ECDSA certificate each kind of client gets. The goal speaks of ours: all get the one
// that they have to get.
type choice struct {
	Title string    `json:"title"`
	Cells []*served `json:"cells"`
	Met   *bool     `json:"met,omitempty"`
	// Lacks is that without which nothing can be said of the goal.
	Lacks []string `json:"lacks,omitempty"`
}

// served is what one target serves.
type served struct {
	Target  string `json:"target"`
	Clients []pick `json:"clients,omitempty"`
	Problem string `json:"problem,omitempty"`
	modern  bool
}

// pick is what a kind of client gets: "ECDSA", "RSA", or "nothing" with a problem.
type pick struct {
	Client  string `json:"client"`
	Want    string `json:"want"`
	Got     string `json:"got"`
	Problem string `json:"problem,omitempty"`
}

// chosen asks all targets that run w. What goes wrong with one of them is written down, and ends nothing.
func (b *bench) chosen(ctx context.Context, w *workload, instances []*instance) *choice {
	all := &choice{Title: "ECDSA certificate chosen whenever the client offers it"}
	for n, t := range b.targets {
		if !w.runs(t) {
			continue
		}
		s := &served{Target: t.Name, modern: t.modern}
		if all.Cells = append(all.Cells, s); instances[n] == nil {
			s.Problem = "it did not start"
			continue
		}
		for _, o := range offers {
			got, err := o.served(ctx, b.client(instances[n], "both"), b.pki.dir)
			if errors.Is(err, exec.ErrNotFound) {
				all.lack(fmt.Sprintf("openssl for a client %q", o.name))
				continue
			}
			p := pick{Client: o.name, Want: o.want.String(), Got: got.String()}
			if err != nil {
				p.Got, p.Problem = "nothing", firstLine(err).Error()
			}
			s.Clients = append(s.Clients, p)
		}
	}
	all.judge()
	return all
}

func (c *choice) lack(what string) {
	if !slices.Contains(c.Lacks, what) {
		c.Lacks = append(c.Lacks, what)
	}
}

// judge says whether the goal is met. One wrong certificate is enough to miss it, whatever else is not known.
func (c *choice) judge() {
	mine := c.cell("countersign")
	if len(mine.Clients) == 0 {
		name := "countersign"
		if mine.Problem != "" {
			name += " (" + mine.Problem + ")"
		}
		c.lack(name)
		return
	}
	if met := mine.right() == len(mine.Clients); !met || len(c.Lacks) == 0 {
		c.Met = &met
	}
}

// cell is that of a target; a new one if it has none.
func (c *choice) cell(target string) *served {
	for _, s := range c.Cells {
		if s.Target == target {
			return s
		}
	}
	return &served{}
}

// right is how many kinds of client get what they have to get.
func (s *served) right() (n int) {
	for _, p := range s.Clients {
		if p.Got == p.Want {
			n++
		}
	}
	return n
}

// String is empty for a target that was not asked.
func (s *served) String() string {
	if len(s.Clients) == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d kinds of client", s.right(), len(s.Clients))
}

// better is the peer that serves most clients right, of those that goals speak of; empty if there is none.
func (c *choice) better() string {
	var best *served
	for _, s := range c.Cells {
		if s.modern && len(s.Clients) > 0 && (best == nil || s.right() > best.right()) {
			best = s
		}
	}
	if best == nil {
		return ""
	}
	return fmt.Sprintf("%s %d of %d", best.Target, best.right(), len(best.Clients))
}

func (c *choice) verdict() string {
	switch {
	case c.Met == nil:
		return "all, OPEN"
	case *c.Met:
		return "all, met"
	}
	return "all, NOT met"
}

// missed says in a plain line why the goal is not met, or open.
func (c *choice) missed() string {
	if c.Met == nil {
		return fmt.Sprintf("OPEN: %s: the goal is all kinds of client; missing: %s.", c.Title, strings.Join(c.Lacks, ", "))
	}
	mine := c.cell("countersign")
	var wrong []string
	for _, p := range mine.Clients {
		if p.Got != p.Want {
			text := fmt.Sprintf("%s got %s, expected %s", p.Client, p.Got, p.Want)
			if p.Problem != "" {
				text += " (" + p.Problem + ")"
			}
			wrong = append(wrong, text)
		}
	}
	return fmt.Sprintf("NOT MET: %s: %s; %s.", c.Title, mine, strings.Join(wrong, "; "))
}

// print writes a table: a line for each kind of client, a column for each target.
func (c *choice) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s: of a host that has an RSA-2048 one too\n", c.Title)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprint(t, "\tclient\texpected\t")
	for _, s := range c.Cells {
		fmt.Fprintf(t, "%s\t", s.Target)
	}
	fmt.Fprintln(t)
	for _, o := range offers {
		fmt.Fprintf(t, "\t%s\t%s\t", o.name, o.want)
		for _, s := range c.Cells {
			got := "-"
			for _, p := range s.Clients {
				if p.Client == o.name {
					got = p.Got
				}
			}
			fmt.Fprintf(t, "%s\t", got)
		}
		fmt.Fprintln(t)
	}
	t.Flush()
}
