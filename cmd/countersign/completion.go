package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// prepareCompletion adds cobra's completion command to a root that has all its other commands, and tells what the values
// of flags are. Arguments are not files unless a command says so.
func prepareCompletion(root *cobra.Command) {
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Short = "print the script with which bash, zsh, fish or powershell completes commands and flags"
			c.Long = "Print the script with which a shell completes commands, flags and names of configuration files.\n" +
				"The help of each shell's command says where the script belongs."
			// Without this the help would go to standard output, with status 0, into whatever evaluates it.
			c.Args = cobra.ArbitraryArgs
			c.RunE = func(_ *cobra.Command, args []string) error {
				const next = "\nhint: countersign completion --help lists them"
				if len(args) == 0 {
					return usageError{errors.New("completion: expected a shell, found none" + next)}
				}
				return usageError{fmt.Errorf("completion: expected a shell that is known, found %q"+next, args[0])}
			}
		}
		flags := c.Flags()
		if flags.Lookup("config") != nil {
			must(c.MarkFlagFilename("config", "yaml", "yml"))
		}
		if flags.Lookup("dir") != nil {
			must(c.MarkFlagDirname("dir"))
		}
	}
}

// must is for errors that only a mistake in this package brings about.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
