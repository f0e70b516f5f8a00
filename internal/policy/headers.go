package policy

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"countersign/internal/identity"
	"countersign/internal/message"
)

// headers is the header section of a request as CEL sees it: a map from lower-case names to lists of values. Nothing is
// copied before a rule asks for it. Headers of the protected set are not in it: at this point they are still what the
// client sent (D01).
type headers Facts

var _ traits.Mapper = (*headers)(nil)

// Find returns the values of a header in order.
func (h *headers) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return nil, false
	}
	var found []string
	for i := range h.Request.Fields {
		field := &h.Request.Fields[i]
		if !message.EqualFold(field.Name, string(name)) || identity.Protected(field.Name) {
			continue
		}
		if len(field.Value) > maxValue || !utf8.Valid(field.Value) || len(found) == maxEntries {
			err := unusable("expected at most %d values of %s in UTF-8 and at most %d bytes each", maxEntries, quote(string(name)), maxValue)
			return (*activation)(h).refuse(headerMap, err.(*types.Err)), true
		}
		found = append(found, string(field.Value))
	}
	if found == nil {
		return nil, false
	}
	return types.NewStringList(types.DefaultTypeAdapter, found), true
}

// Get returns the values of a header that must be there.
func (h *headers) Get(key ref.Val) ref.Val {
	if v, ok := h.Find(key); ok {
		return v
	}
	return types.NewErr("request.headers: no such header")
}

// Contains reports whether a header is there.
func (h *headers) Contains(key ref.Val) ref.Val {
	v, ok := h.Find(key)
	if ok && types.IsError(v) {
		return v
	}
	return types.Bool(ok)
}

// names returns the lower-case names, each once, in alphabetical order.
func (h *headers) names() []string {
	var names []string
	for i := range h.Request.Fields {
		if name := h.Request.Fields[i].Name; !identity.Protected(name) {
			names = append(names, strings.ToLower(string(name)))
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > maxEntries || slices.ContainsFunc(names, func(s string) bool { return len(s) > maxEntry || !utf8.ValidString(s) }) {
		(*activation)(h).refuse(headerMap, unusable("expected at most %d names of at most %d bytes in UTF-8", maxEntries, maxEntry).(*types.Err))
		return nil
	}
	return names
}

// Size returns the number of different names.
func (h *headers) Size() ref.Val { return types.Int(len(h.names())) }

// Iterator goes through the names.
func (h *headers) Iterator() traits.Iterator {
	return types.NewStringList(types.DefaultTypeAdapter, h.names()).Iterator()
}

// Equal is not defined: two header sections have no one sense in which they are equal.
func (h *headers) Equal(ref.Val) ref.Val {
	return (*activation)(h).refuse(headerMap, types.NewErr("headers cannot be compared as a whole").(*types.Err))
}

func (h *headers) Type() ref.Type { return types.MapType }

// Value is of no use to anyone: the facts stay here.
func (h *headers) Value() any { return nil }

func (h *headers) ConvertToType(t ref.Type) ref.Val {
	return types.NewErr("request.headers cannot be converted to %s", t.TypeName())
}

func (h *headers) ConvertToNative(reflect.Type) (any, error) {
	return nil, errors.New("request.headers cannot be converted")
}

// only returns the one value of a header. It is an error if there is none, or an empty one: a client without a common name
// would be the equal of a request without the header (B29). So it is if there are several, because who reads the first and
// who reads the last would disagree.
func only(header, name ref.Val) ref.Val {
	m, ok := header.(traits.Mapper)
	if !ok {
		return types.MaybeNoSuchOverloadErr(header)
	}
	v, found := m.Find(name)
	if !found {
		return types.NewErr("only: expected one value, found none")
	}
	values, ok := v.(traits.Lister)
	if !ok {
		return v // an error
	}
	if n := values.Size(); n != types.IntOne {
		return types.NewErr("only: expected one value, found %v", n.Value())
	}
	value := values.Get(types.IntZero)
	if value == types.String("") {
		return types.NewErr("only: expected one value, found an empty one")
	}
	return value
}

// checkHeader wants a header's name as rules must write it.
func checkHeader(name string) error {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return fmt.Errorf("expected the name of a header in lower case, found %s; write %s", quote(name), quote(strings.ToLower(name)))
		}
	}
	switch {
	case name == "":
		return errors.New("expected the name of a header, found none; write one in lower case")
	case identity.Protected([]byte(name)):
		return fmt.Errorf("expected a header that clients may send, found %s, which is removed from every request; read client.* instead",
			quote(name))
	}
	return nil
}
