package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"countersign/internal/certs"
	"countersign/internal/probe"
	"countersign/internal/trust"
)

func probeCommand() *cobra.Command {
	var o probe.Options
	var ca, folder, cert, key, proxy string
	var asJSON bool
	c := &cobra.Command{
		Use:   "probe HOST:PORT",
		Short: "tell what a TLS server offers and what it asks of clients",
		Long: "Ask a TLS server from outside: which versions, cipher suites, groups and application protocols it accepts, which\n" +
			"certificates it shows and what is wrong with them, and whether it requests or requires a client certificate, from\n" +
			"which CAs and with which keys. TLS alerts are put into plain words, and what is no TLS server is told as what it is.\n" +
			"It makes up to 150 short connections, and an HTTP request where the handshake is completed. For example:\n\n" +
			"\tcountersign probe api.example.com:443 --certs ./certs\n" +
			"\tcountersign probe 10.0.0.7:8443 --sni api.internal --ca internal-ca.pem --cert me.pem --key me.key\n" +
			"\tcountersign probe mail.example.com:25 --starttls smtp\n\n" +
			"Exit status 0 if a TLS server answered, whatever it said; 1 if nobody could be reached, or there is no TLS.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("probe: expected one HOST:PORT, found %d\nhint: countersign probe --help", len(args))}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			o.Target = args[0]
			if c.Flags().Changed("sni") && o.ServerName == "" {
				o.NoServerName = true
			}
			switch proxy {
			case "":
			case "v1":
				o.ProxyProtocol = 1
			case "v2":
				o.ProxyProtocol = 2
			default:
				return usageError{fmt.Errorf("probe: --proxy-protocol: expected v1 or v2, found %q", proxy)}
			}
			if err := probeFiles(&o, ca, folder, cert, key); err != nil {
				return usageError{fmt.Errorf("probe: %w", err)}
			}
			if o.Roots == nil {
				var err error
				if o.Roots, o.RootsName, err = probe.SystemRoots(); err != nil {
					fmt.Fprintf(c.ErrOrStderr(), "countersign: %s\n", err)
				}
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			r, err := probe.Run(ctx, o)
			if err != nil {
				return usageError{fmt.Errorf("probe: %w\nhint: countersign probe --help", err)}
			}
			if asJSON {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(r)
			} else {
				err = r.WriteText(c.OutOrStdout())
			}
			if err == nil && r.Outcome != probe.OutcomeTLS {
				err = errors.New("no TLS server was found")
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&o.ServerName, "sni", "", "server `name` to ask for and to compare the certificate with (default the host; empty sends none)")
	f.StringVar(&o.StartTLS, "starttls", "", "`protocol` within which TLS begins: "+strings.Join(probe.StartTLS, ", "))
	f.StringVar(&proxy, "proxy-protocol", "", "`version` of a PROXY header to send first: v1 or v2")
	f.StringVar(&ca, "ca", "", "`file` of CAs by which the server's certificate is judged (default those of the machine)")
	f.StringVar(&folder, "certs", "", "`folder` of certificates to compare with what the server asks for")
	f.StringVar(&cert, "cert", "", "client certificate `file` to try with, its issuers behind it")
	f.StringVar(&key, "key", "", "private key `file` of the client certificate")
	f.StringVar(&o.Path, "path", "/", "`path` of the HTTP request after the handshake (empty sends none)")
	f.DurationVar(&o.Timeout, "timeout", probe.DefaultTimeout, "`time` for each connection; the whole takes at most twelve times as long")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON")
	must(c.MarkFlagDirname("certs"))
	for _, name := range []string{"ca", "cert"} {
		must(c.MarkFlagFilename(name, "pem", "crt", "cer"))
	}
	must(c.MarkFlagFilename("key", "key", "pem"))
	must(c.RegisterFlagCompletionFunc("starttls", cobra.FixedCompletions(probe.StartTLS, cobra.ShellCompDirectiveNoFileComp)))
	must(c.RegisterFlagCompletionFunc("proxy-protocol", cobra.FixedCompletions([]string{"v1", "v2"}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

// probeFiles reads what the command line names.
func probeFiles(o *probe.Options, ca, folder, cert, key string) (err error) {
	if (cert == "") != (key == "") {
		return errors.New("expected --cert and --key together, found one of them")
	}
	if cert != "" {
		var s certs.Source
		if s.Cert, err = os.ReadFile(cert); err != nil {
			return err
		}
		if s.Key, err = os.ReadFile(key); err != nil {
			return err
		}
		if o.Certificate, _, err = certs.Parse(s); err != nil {
			return fmt.Errorf("--cert %s, --key %s: %w", cert, key, err)
		}
	}
	if ca != "" {
		data, err := os.ReadFile(ca)
		if err != nil {
			return err
		}
		var list []*x509.Certificate
		if list, _, err = trust.LoadBundle(data, false); err != nil {
			return fmt.Errorf("--ca %s: %w", ca, err)
		}
		o.Roots, o.RootsName = list, ca
	}
	if folder != "" {
		o.Candidates, err = probe.LoadCandidates(folder)
	}
	return err
}
