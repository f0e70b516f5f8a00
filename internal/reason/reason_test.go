package reason

import (
	"regexp"
	"strings"
	"testing"
)

// TestTable holds every row to the form that its readers rely on.
func TestTable(t *testing.T) {
	code := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	seen := map[string]bool{}
	for _, r := range All() {
		row := r.Row()
		if !code.MatchString(row.Code) {
			t.Errorf("reason %d: code %q", r, row.Code)
		}
		if seen[row.Code] {
			t.Errorf("%s is there twice", row.Code)
		}
		seen[row.Code] = true
		if row.Stage == "" || row.Fault == "" || row.Sentence == "" {
			t.Errorf("%s: stage, fault or sentence is missing", row.Code)
		}
		if good := row.Fault == FaultNone; good != (row.Next == "") {
			t.Errorf("%s: a refusal says what to do next, a good end does not", row.Code)
		}
		if strings.HasSuffix(row.Sentence, ".") || strings.HasSuffix(row.Next, ".") {
			t.Errorf("%s: texts end without a full stop, others go on behind them", row.Code)
		}
		if row.Status != 0 && (row.Status < 400 || row.Status > 599) {
			t.Errorf("%s: status %d", row.Code, row.Status)
		}
		if back, ok := Parse(row.Code); !ok || back != r {
			t.Errorf("%s is not found by its code", row.Code)
		}
	}
	if Unset.Good() || Reason(255).String() != "internal" {
		t.Error("an unset or unknown reason must be a refusal")
	}
	if _, ok := Parse("unset"); ok {
		t.Error("unset is not a reason to ask for")
	}
}

// TestNextPointsAtEvidence: what to do is true of every setting, so what a setting decides is read in the record.
func TestNextPointsAtEvidence(t *testing.T) {
	for _, r := range []Reason{ClientCertEKU, ClientCertEKUMissing} { // accept.eku may name other purposes
		row := r.Row()
		if strings.Contains(strings.ToLower(row.Sentence), "clientauth") || strings.Contains(row.Sentence, "client authentication") || !strings.Contains(row.Next, "that expected names") {
			t.Errorf("%s: %s; %s", row.Code, row.Sentence, row.Next)
		}
	}
	if next := PolicyDenied.Row().Next; !strings.HasSuffix(next, "the expression, which stands in expected") {
		t.Errorf("the expression is not in found: %s", next)
	}
}
