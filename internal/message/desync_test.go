package message

import "testing"

func TestMitigation(t *testing.T) {
	for name, want := range map[string]Mitigation{"": Strictest, "strictest": Strictest, "defensive": Defensive, "monitor": Monitor} {
		if m, ok := ParseMitigation(name); m != want || !ok || name != "" && m.String() != name {
			t.Errorf("%q: %s %v", name, m, ok)
		}
	}
	for _, name := range []string{"Strictest", "off", "monitor ", "none"} {
		if m, ok := ParseMitigation(name); m != Strictest || ok {
			t.Errorf("%q: %s %v", name, m, ok)
		}
	}
	var zero Mitigation
	if zero != Strictest {
		t.Error("the zero value is not the strictest")
	}
}

// The classes and names are those of AWS ALB, which access logs and dashboards know.
func TestClassReasons(t *testing.T) {
	count := [Classes]int{}
	names := make(map[string]bool)
	for r := range ClassReason(ClassReasons) {
		if r.String() == "" || names[r.String()] {
			t.Errorf("%d has no name of its own: %q", r, r)
		}
		names[r.String()] = true
		count[r.Class()]++
	}
	if count != [Classes]int{1, 5, 12, 8} {
		t.Errorf("in the classes: %v", count)
	}
	for c, want := range []string{"Compliant", "Acceptable", "Ambiguous", "Severe"} {
		if Class(c).String() != want {
			t.Errorf("class %d is %s", c, Class(c))
		}
	}
	if NoDeviation.Class() != Compliant || ClassReason(255).String() == "" || Class(255).String() == "" || Mitigation(255).String() == "" {
		t.Error("a value out of range")
	}
	if EmptyHeader.Worse(MissingHeaderColon) != EmptyHeader || EmptyHeader.Worse(BadHeader) != BadHeader || BadHeader.Worse(BadUri) != BadHeader || NoDeviation.Worse(SpaceInUri) != SpaceInUri {
		t.Error("Worse")
	}
}
