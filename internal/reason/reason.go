// Package reason owns the one table of ways a connection or a request ends.
//
// Log, metrics, error pages and docs/reasons.md are all rendered from it, so that they cannot disagree. It decides nothing.
package reason

import "fmt"

// Reason is one row of the table. It is small and comparable; the zero value is Unset and means that no stage has
// decided yet, which every consumer treats as a refusal.
type Reason uint8

// Stage is the step of a connection's life that decided.
type Stage string

// The stages, in the order in which a connection meets them.
const (
	StageAccept    Stage = "accept"    // before any byte was read
	StageHello     Stage = "hello"     // ClientHello and server name
	StageHandshake Stage = "handshake" // TLS, client certificate included
	StageRequest   Stage = "request"   // reading and checking an HTTP request
	StageRoute     Stage = "route"     // host, path, policy
	StageUpstream  Stage = "upstream"  // target, backend TLS, response
	StageForward   Stage = "forward"   // moving bytes
	StageOperator  Stage = "operator"  // something the operator did: reload, drain
)

// Fault is the side that has to act when an end is not a good one.
type Fault string

// The sides.
const (
	FaultNone     Fault = "none"
	FaultClient   Fault = "client"
	FaultOperator Fault = "operator"
	FaultUpstream Fault = "upstream"
	FaultSelf     Fault = "countersign"
)

// Row says everything that is known about one Reason.
type Row struct {
	// Code is the stable name used in logs, metrics and tests: lower case, words joined by underscores.
	Code string
	// Stage is where the end was decided.
	Stage Stage
	// Fault is the side that has to act; FaultNone for good ends.
	Fault Fault
	// Status is the HTTP status sent to the client when the reason is met while a request can be answered; 0 when
	// nothing is sent at HTTP level.
	Status int
	// ALB is the tls_verify_status or error_reason text AWS ALB uses for the same event; empty where ALB has none.
	ALB string
	// Sentence says what happened, for the operator.
	Sentence string
	// Next is the one thing to do about it; empty for good ends.
	Next string
}

// Row returns the table row of r. An unknown value gives the row of Internal, never a panic.
func (r Reason) Row() *Row {
	if int(r) >= len(table) || table[r].Code == "" {
		return &table[Internal]
	}
	return &table[r]
}

// String returns the code.
func (r Reason) String() string { return r.Row().Code }

// Good reports whether the end is an ordinary one, with nobody at fault.
func (r Reason) Good() bool { return r != Unset && r.Row().Fault == FaultNone }

// Status returns the HTTP status of the row.
func (r Reason) Status() int { return r.Row().Status }

// Count is the number of reasons, Unset included: metrics keep an array of this length.
const Count = int(count)

// All returns every reason in table order, Unset left out.
func All() []Reason {
	all := make([]Reason, 0, Count)
	for r := Reason(1); r < count; r++ {
		all = append(all, r)
	}
	return all
}

// Parse finds a reason by its code.
func Parse(code string) (Reason, bool) {
	for r := Reason(1); r < count; r++ {
		if table[r].Code == code {
			return r, true
		}
	}
	return Unset, false
}

// Refusal is an error that carries its reason, what was expected and what was found. Text for outsiders is the row's;
// Cause is for the operator only.
type Refusal struct {
	Reason   Reason
	Expected string
	Found    string
	Cause    error
}

func (e *Refusal) Error() string {
	row := e.Reason.Row()
	s := row.Code + ": " + row.Sentence
	if e.Expected != "" {
		s += fmt.Sprintf("; expected %s, found %s", e.Expected, e.Found)
	} else if e.Found != "" {
		s += "; found " + e.Found
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

func (e *Refusal) Unwrap() error { return e.Cause }
