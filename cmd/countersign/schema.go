package main

import (
	"io"

	"github.com/spf13/cobra"

	"countersign/api"
)

func schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "print the JSON Schema of the configuration, for editors",
		Long: "Print the JSON Schema (draft-07) of the configuration file. With it an editor completes keys, shows what they mean\n" +
			"and marks mistakes. Write it beside the configuration:\n\n" +
			"\tcountersign schema > countersign.schema.json\n\n" +
			"and let the first line of the configuration be\n\n" +
			"\t# yaml-language-server: $schema=./countersign.schema.json\n\n" +
			"The schema sees one value at a time. What is accepted is decided by countersign check.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := io.WriteString(c.OutOrStdout(), api.ConfigSchema)
			return err
		},
	}
}
