package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"countersign/internal/daemon"
)

func checkCommand() *cobra.Command {
	var file string
	var asJSON, fetch bool
	c := &cobra.Command{
		Use:   "check",
		Short: "check a configuration and print who gets in where",
		Long: "Read a configuration and every file it names, report all problems at once with their place and the next step,\n" +
			"and print the effective client-auth policy of every listener and host. Exit status 2 if something is wrong.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := daemon.Check(file, time.Now(), fetch)
			var conf *daemon.ConfigError
			if err != nil && (!asJSON || !errors.As(err, &conf)) {
				return err
			}
			if asJSON {
				type problem struct {
					File    string `json:"file"`
					Line    int    `json:"line"`
					Column  int    `json:"column"`
					Path    string `json:"path"`
					Message string `json:"message"`
					Next    string `json:"next,omitempty"`
					Warning bool   `json:"warning"`
				}
				out := struct {
					OK       bool      `json:"ok"`
					Hash     string    `json:"hash,omitempty"`
					Problems []problem `json:"problems"`
				}{OK: err == nil, Problems: []problem{}}
				if l.Snapshot != nil {
					out.Hash = l.Snapshot.Hash
				}
				for _, p := range l.Problems {
					out.Problems = append(out.Problems, problem{l.File.Name, p.Pos.Line, p.Pos.Column, p.Path, p.Message, p.Next, p.Warning})
				}
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				if jerr := enc.Encode(out); jerr != nil {
					return jerr
				}
				if err != nil {
					return usageError{errors.New("the configuration is not accepted")}
				}
				return nil
			}
			if err := l.File.Render(c.ErrOrStderr(), l.Problems); err != nil {
				return err
			}
			if err := l.Snapshot.Describe(c.OutOrStdout()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "\n%s is good (configuration %s)\n", file, l.Snapshot.Hash)
			return err
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "countersign.yaml", "configuration `file`")
	c.Flags().BoolVar(&fetch, "fetch", false, "ask the URLs of revocation lists and CA bundles too")
	c.Flags().BoolVar(&asJSON, "json", false, "print problems as JSON")
	return c
}
