package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"countersign/internal/certs"
	"countersign/internal/daemon"
	"countersign/internal/diagnose"
	"countersign/internal/snapshot"
)

// exitUndecided is the status of explain for a question that could not be decided.
const exitUndecided = 3

// statusError is an end with a status and nothing more to say.
type statusError int

func (statusError) Error() string { return "" }

func explainCommand() *cobra.Command {
	var (
		o                                  diagnose.LiveOptions
		q                                  diagnose.Question
		cert, chain, key, config, at, from string
		servers, ref                       string
		asJSON, fetch                      bool
	)
	c := &cobra.Command{
		Use:   "explain",
		Short: "tell why a client certificate is accepted or refused",
		Long: "Tell each check that is made of a client, what was expected, what was found, and the one thing to do next.\n\n" +
			"With --host: what a configuration makes of the certificate, as the running program would decide. The lists and\n" +
			"bundles of URLs are those that it has kept; nothing is fetched without --fetch. Without --cert the question is\n" +
			"about a client that has none. With --path the request is judged too.\n\n" +
			"\tcountersign explain -c countersign.yaml --cert alice.pem --host api.example.com --path /admin\n\n" +
			"With --connect: what any server makes of it, over TLS 1.3 and 1.2.\n\n" +
			"\tcountersign explain --connect api.example.com:443 --cert alice.pem --key alice.key\n\n" +
			"With --ref: what happened to a handshake or request that ended badly, from the journal of the state folder.\n\n" +
			"\tcountersign explain -c countersign.yaml --ref 4f1c0a8e9b2d7c35\n\n" +
			"Exit status: 0 accepted, 1 refused, 2 the question cannot be asked, 3 it could not be decided.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var report any
			var outcome diagnose.Outcome
			var show func() error
			now := time.Now()
			if at != "" {
				var err error
				if now, err = moment(at); err != nil {
					return usageError{fmt.Errorf("--at: expected a time like 2026-12-31 or 2026-12-31T23:59:00Z, found %q\nhint: leave it out for now", at)}
				}
			}
			read := func(flag, name string) ([]byte, error) {
				if name == "" {
					return nil, nil
				}
				data, err := snapshot.ReadFile(name)
				if err != nil {
					return nil, usageError{fmt.Errorf("cannot read --%s: %w\nhint: name a file that can be read", flag, err)}
				}
				if len(data) == 0 {
					return nil, usageError{fmt.Errorf("--%s: %s is empty\nhint: name a file with certificates", flag, name)}
				}
				return data, nil
			}
			if ref != "" {
				if o.Address != "" || q.Host != "" || cert != "" {
					return usageError{errors.New("--ref asks the journal for what has happened, and goes with --config and --json only\nhint: leave the others out")}
				}
				return explainRef(c, config, ref, asJSON)
			}
			if o.Address == "" && q.Host == "" {
				return usageError{errors.New("explain: expected --host NAME, --connect HOST:PORT or --ref REFERENCE, found none\nhint: countersign explain --help")}
			}
			certPEM, err := read("cert", cert)
			if err != nil {
				return err
			}
			chainPEM, err := read("chain", chain)
			if err != nil {
				return err
			}
			if chainPEM != nil && certPEM == nil {
				return usageError{errors.New("--chain without --cert\nhint: name the client's certificate with --cert")}
			}
			switch {
			case o.Address != "" && q.Host != "":
				return usageError{errors.New("--host asks a configuration, --connect a server\nhint: give one of them; the server's name goes into --sni")}
			case o.Address != "" && len(q.Header) > 0:
				return usageError{errors.New("--header is for --host: a server is sent none\nhint: leave it out")}
			case o.Address != "":
				keyPEM, err := read("key", key)
				if err != nil {
					return err
				}
				if (keyPEM == nil) != (certPEM == nil) {
					return usageError{errors.New("--connect needs --cert and --key, or neither\nhint: name both files")}
				}
				if o.ServerCAs, err = read("servername-ca", servers); err != nil {
					return err
				}
				o.Cert, o.Key, o.Chain, o.Path, o.Method, o.File = certPEM, keyPEM, chainPEM, q.Path, q.Method, filepath.Base(cert)
				o.ServerName = q.ServerName
				ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
				defer stop()
				r, err := diagnose.Connect(ctx, &o)
				if err != nil {
					return asUsage(err)
				}
				report, outcome, show = r, r.Outcome, func() error { return r.Print(c.OutOrStdout()) }
			default:
				if key != "" || servers != "" {
					return usageError{errors.New("--key and --servername-ca are for --connect\nhint: leave them out")}
				}
				if from != "" {
					if q.Client, err = netip.ParseAddr(from); err != nil {
						return usageError{fmt.Errorf("--from: %w\nhint: write the client's address, as 192.0.2.7", err)}
					}
				}
				if certPEM != nil {
					q.File = filepath.Base(cert)
					if chain != "" {
						q.File = filepath.Base(chain)
					}
					var problem *certs.Problem
					if q.Presented, err = diagnose.ReadChain(certPEM, chainPEM); errors.As(err, &problem) {
						return usageError{fmt.Errorf("%s: %w", cert, err)}
					}
					q.Unparsable = err
				}
				r, err := explain(config, now, fetch, &q)
				if err != nil {
					return asUsage(err)
				}
				report, outcome, show = r, r.Outcome, func() error { return r.Print(c.OutOrStdout()) }
			}
			if asJSON {
				show = func() error {
					enc := json.NewEncoder(c.OutOrStdout())
					enc.SetEscapeHTML(false)
					enc.SetIndent("", "  ")
					return enc.Encode(report)
				}
			}
			if err := show(); err != nil {
				return err
			}
			switch outcome {
			case diagnose.Accepted:
				return nil
			case diagnose.Refused:
				return statusError(exitFailure)
			}
			return statusError(exitUndecided)
		},
	}
	f := c.Flags()
	f.StringVarP(&config, "config", "c", "countersign.yaml", "configuration `file`")
	f.StringVar(&cert, "cert", "", "`file` with the client's certificate, and its intermediates if they are in it")
	f.StringVar(&chain, "chain", "", "`file` with the intermediates that the client sends")
	f.StringVar(&q.Host, "host", "", "`name` that the client asks for")
	f.StringVar(&q.Path, "path", "", "`path` that the client asks for; without it only the connection is judged")
	f.StringVar(&q.Method, "method", "", "request `method` (default GET)")
	f.StringArrayVar(&q.Header, "header", nil, "request header, as '`Name: value`'; can be given again")
	f.StringVar(&q.Listener, "listener", "", "`name` of the listener, where several have the host")
	f.StringVar(&q.ServerName, "sni", "", "server `name` in the ClientHello (default the host's)")
	f.StringVar(&from, "from", "", "the client's `address`, for rules about it")
	f.StringVar(&ref, "ref", "", "`reference` in the log or on an error page, of something that ended badly")
	f.StringVar(&at, "at", "", "`time` to judge for (default now)")
	f.BoolVar(&fetch, "fetch", false, "ask the URLs of revocation lists and CA bundles, and OCSP responders")
	f.StringVar(&o.Address, "connect", "", "ask the server at `host:port`")
	f.StringVar(&key, "key", "", "`file` with the key of --cert, for --connect")
	f.StringVar(&servers, "servername-ca", "", "`file` with the CAs that the server's certificate is judged by (default the system's)")
	f.DurationVar(&o.Timeout, "timeout", 10*time.Second, "`time` that each connection may take")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON")
	for _, name := range []string{"cert", "chain", "servername-ca"} {
		must(c.MarkFlagFilename(name, "pem", "crt", "cer", "der", "p7b"))
	}
	must(c.MarkFlagFilename("key", "pem", "key"))
	return c
}

// explain asks the configuration, and asks again with what a first answer was in want of.
func explain(config string, now time.Time, fetch bool, q *diagnose.Question) (*diagnose.Report, error) {
	look, err := daemon.NewLook(config, now, fetch)
	if err != nil {
		return nil, err
	}
	defer look.Close()
	setup := look.Setup()
	r, err := diagnose.Explain(setup, q)
	if err != nil || !fetch {
		return r, err
	}
	if look.Learn(r.Points) {
		setup = look.Setup()
		if r, err = diagnose.Explain(setup, q); err != nil {
			return nil, err
		}
	}
	if len(r.Queries) > 0 {
		for _, err := range look.Ask(r.Queries) {
			setup.OCSPProblems = append(setup.OCSPProblems, err.Error())
		}
		r, err = diagnose.Explain(setup, q)
	}
	return r, err
}

func moment(text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t, err = time.ParseInLocation(time.DateOnly, text, time.UTC)
	}
	return t, err
}

// asUsage makes an error of a question that cannot be asked one with status 2.
func asUsage(err error) error {
	var conf *daemon.ConfigError
	if errors.As(err, &conf) {
		return err
	}
	return usageError{err}
}
