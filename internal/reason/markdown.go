package reason

import (
	"bufio"
	"fmt"
	"io"
)

// WriteMarkdown writes the table as docs/reasons.md.
func WriteMarkdown(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprint(b, "# Reasons\n\nEvery way a connection or request can end, as it appears in the `reason` field of the log and the `reason` label of the\n"+
		"metrics. *Fault* is the side that has to act. *Status* is what the client gets when the request can still be answered;\n"+
		"refused handshakes end with a TLS alert or a reset. This page is generated from the table in `internal/reason`\n(`make docs`).\n")
	var stage Stage
	for _, r := range All() {
		row := r.Row()
		if row.Stage != stage {
			stage = row.Stage
			fmt.Fprintf(b, "\n## %s\n\n| reason | fault | status | AWS ALB | what happened | what to do |\n|---|---|---|---|---|---|\n", stage)
		}
		status := "-"
		if row.Status != 0 {
			status = fmt.Sprint(row.Status)
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s | %s |\n", row.Code, row.Fault, status, dash(row.ALB), row.Sentence, dash(row.Next))
	}
	return b.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
