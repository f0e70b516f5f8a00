package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// Shown returns the value of a variable as the rule sees it, for people: escaped and cut. It decides nothing. What cannot be
// read is told as such, with why.
func (r *Rule) Shown(f *Facts, name string) string {
	defer func() { f.verified, f.path, f.absent, f.unusable = nil, nil, "", nil }()
	f.path, f.absent, f.unusable = f.Path.Literal(), "", nil
	if id, ok := f.Client.Identity(); ok && verifies(r.mode) {
		f.verified = id
	}
	value, known := (*activation)(f).ResolveName(name)
	switch {
	case !known:
		return "unknown"
	case f.absent != "":
		return "not there: no verified client"
	case f.unusable != nil:
		return "cannot be read: " + bounded(f.unusable.Error())
	}
	if h, ok := value.(*headers); ok {
		return cut(showHeaders(h))
	}
	v, ok := value.(ref.Val)
	if !ok {
		return "unknown"
	}
	return cut(show(v))
}

// cut bounds what is shown of a value, which is escaped already.
func cut(s string) string {
	const most = 1000
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

func show(v ref.Val) string {
	switch v := v.(type) {
	case types.String:
		return quote(string(v))
	case types.Timestamp:
		return v.Time.UTC().Format(time.RFC3339)
	case traits.Lister:
		var all []string
		for it := v.Iterator(); it.HasNext() == types.True; {
			if len(all) == 8 {
				all = append(all, "...")
				break
			}
			all = append(all, show(it.Next()))
		}
		return "[" + strings.Join(all, ", ") + "]"
	}
	return bounded(fmt.Sprint(v.Value()))
}

func showHeaders(h *headers) string {
	names := h.names()
	if len(names) == 0 {
		return "none"
	}
	shown := slices.Clone(names[:min(len(names), 8)])
	for i, n := range shown {
		shown[i] = quote(n)
		if v, ok := h.Find(types.String(n)); ok {
			shown[i] += ": " + show(v)
		}
	}
	if len(names) > len(shown) {
		shown = append(shown, "...")
	}
	return strings.Join(shown, ", ")
}
