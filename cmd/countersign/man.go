package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "write the manual pages into a folder",
		Long: "Write a manual page for countersign and one for each of its commands into a folder, which is made if it is not\n" +
			"there. For example, for every user of the machine:\n\n" +
			"\tcountersign man /usr/local/share/man/man1",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("man: expected one folder, found %d\nhint: countersign man --help", len(args))}
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("cannot make the folder: %w", err)
			}
			n, err := writeManual(args[0], c.Root())
			if err != nil {
				return fmt.Errorf("cannot write the manual: %w", err)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%d pages; read the first with: man %s\n", n, filepath.Join(args[0], "countersign.1"))
			return err
		},
	}
}

// writeManual writes the pages of a command and those below it and returns their number.
func writeManual(dir string, c *cobra.Command) (int, error) {
	if err := os.WriteFile(filepath.Join(dir, pageName(c)+".1"), []byte(manual(c)), 0o644); err != nil {
		return 0, err
	}
	n := 1
	for _, child := range c.Commands() {
		if child.IsAvailableCommand() { // not help, and nothing hidden
			more, err := writeManual(dir, child)
			if n += more; err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manual is a command's page in the man macros of roff.
func manual(c *cobra.Command) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	name := pageName(c)
	line(`.TH %s 1 "" "Countersign" "Countersign"`, roff(strings.ToUpper(name)))
	line(".SH NAME\n%s \\- %s", roff(name), roff(c.Short))
	c.InitDefaultHelpFlag()
	usage := strings.TrimPrefix(c.UseLine(), c.CommandPath())
	if c.HasAvailableSubCommands() {
		usage = " COMMAND"
	}
	line(".SH SYNOPSIS\n\\fB%s\\fR%s", roff(c.CommandPath()), roff(usage))
	line(".SH DESCRIPTION")
	text := c.Long
	if text == "" {
		text = strings.ToUpper(c.Short[:1]) + c.Short[1:] + "."
	}
	text, status := exitStatus(text)
	b.WriteString(paragraphs(text))
	line(".SH OPTIONS\n.nf\n%s\n.fi", roff(strings.TrimRight(c.LocalFlags().FlagUsagesWrapped(72), "\n")))
	var also []string
	if c.HasParent() {
		also = append(also, pageName(c.Parent()))
	}
	if c.HasAvailableSubCommands() {
		line(".SH COMMANDS")
		for _, child := range c.Commands() {
			if child.IsAvailableCommand() {
				line(".TP\n\\fB%s\\fR\n%s", roff(child.Name()), roff(child.Short))
				also = append(also, pageName(child))
			}
		}
	}
	line(".SH EXIT STATUS")
	if status == "" {
		line(".TP\n0\nIt worked.\n.TP\n%d\nIt did not work.\n.TP\n%d\nThe command line or the configuration is wrong.", exitFailure, exitConfig)
	} else {
		b.WriteString(paragraphs(status))
	}
	line(".SH SEE ALSO")
	for i, page := range also {
		comma := " ,"
		if i == len(also)-1 {
			comma = ""
		}
		line(".BR %s (1)%s", roff(page), comma)
	}
	return b.String()
}

// exitStatus takes what help text says of the exit status out of it: to the end of that paragraph.
func exitStatus(text string) (rest, status string) {
	at := strings.Index(text, "Exit status")
	if at < 0 {
		return text, ""
	}
	rest, status = strings.TrimRight(text[:at], " \n"), text[at:]
	if end := strings.Index(status, "\n\n"); end >= 0 {
		rest, status = rest+status[end:], status[:end]
	}
	return rest, status
}

// paragraphs sets help text: lines that begin with a tab are examples and stay as they are, the others are filled.
func paragraphs(text string) string {
	var b strings.Builder
	example := false
	for l := range strings.Lines(strings.TrimSpace(text)) {
		l = strings.TrimRight(l, "\n")
		switch indented := strings.HasPrefix(l, "\t"); {
		case l == "" && !example:
			l = ".PP"
		case indented != example && l != "":
			example = indented
			if example {
				l = ".nf\n.RS\n" + roff(strings.TrimPrefix(l, "\t"))
			} else {
				l = ".RE\n.fi\n" + roff(l)
			}
		default:
			l = roff(strings.TrimPrefix(l, "\t"))
		}
		b.WriteString(l + "\n")
	}
	if example {
		b.WriteString(".RE\n.fi\n")
	}
	return b.String()
}

// roff writes text so that none of it is taken for a request: backslashes, hyphens that are to be copied, and dots and
// quotes at the beginning of a line.
func roff(text string) string {
	lines := strings.Split(strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
