package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"countersign/internal/daemon"
	"countersign/internal/journal"
)

// explainRef tells what the journal knows of a reference.
func explainRef(c *cobra.Command, config, ref string, asJSON bool) error {
	r, err := daemon.OpenJournal(c.Context(), config)
	if err != nil {
		return asUsage(err)
	}
	defer r.Close()
	list, _, err := r.Search(c.Context(), journal.Query{Ref: ref})
	if err != nil {
		return asUsage(err) // 1 would say that something is known of it
	}
	tellUnread(c, r)
	if len(list) == 0 {
		fmt.Fprintf(c.ErrOrStderr(), "countersign: nothing that ended badly has the reference %q: it may be too old, or have ended well, or be of another node\nhint: countersign journal --since 1h\n", ref)
		return statusError(exitUndecided)
	}
	out := c.OutOrStdout()
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(list); err != nil {
			return err
		}
		return statusError(exitFailure)
	}
	for i := range list { // newest first: what was asked for is mostly the last that happened
		if i > 0 {
			fmt.Fprintln(out)
		}
		if err := list[i].Print(out); err != nil {
			return err
		}
	}
	return statusError(exitFailure)
}
