package main

import (
	"github.com/spf13/cobra"

	"countersign/internal/reason"
)

func reasonsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reasons", Short: "print every reason a connection or request can end for, as Markdown", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return reason.WriteMarkdown(c.OutOrStdout()) },
	}
}
