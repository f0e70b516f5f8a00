package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const schemaFile = "../../api/config.schema.json"

// TestSchema makes the JSON Schema of the configuration from the structs, their tags and their comments, and compares it
// with the one that is checked in. With -args -update it writes it (make docs). It is here and not in the program, because
// only here the tags, the decoder that enforces them, and the comments are all at hand.
func TestSchema(t *testing.T) {
	want, err := makeSchema()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(schemaFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("api/config.schema.json is not what the structs in internal/config say; run: make docs")
	}
}

// schema is the part of JSON Schema, draft-07, that is needed here, in the order in which it is best read. Draft-07 is the
// one that every editor knows.
type schema struct {
	Schema      string   `json:"$schema,omitempty"`
	Title       string   `json:"title,omitempty"`
	Ref         string   `json:"$ref,omitempty"`
	Description string   `json:"description,omitempty"`
	Type        any      `json:"type,omitempty"` // a name or a list of names
	Enum        []any    `json:"enum,omitempty"`
	Pattern     string   `json:"pattern,omitempty"`
	MinLength   int      `json:"minLength,omitempty"`
	Minimum     *int     `json:"minimum,omitempty"`
	Maximum     *int     `json:"maximum,omitempty"`
	AllOf       []schema `json:"allOf,omitempty"`
	AnyOf       []schema `json:"anyOf,omitempty"`
	OneOf       []schema `json:"oneOf,omitempty"`
	Items       *schema  `json:"items,omitempty"`
	MinItems    int      `json:"minItems,omitempty"`
	Required    []string `json:"required,omitempty"`
	MinProps    int      `json:"minProperties,omitempty"`
	Properties  *ordered `json:"properties,omitempty"`
	Additional  any      `json:"additionalProperties,omitempty"` // false or a schema
	Definitions *ordered `json:"definitions,omitempty"`
}

// ordered is a JSON object whose keys keep the order in which they were put in: that of the structs.
type ordered struct {
	keys   []string
	values []*schema
}

func (o *ordered) put(key string, v *schema) {
	o.keys, o.values = append(o.keys, key), append(o.values, v)
}

func (o *ordered) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // < and > stay readable
	for i, key := range o.keys {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:", key)
		if err := enc.Encode(o.values[i]); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

const (
	// component is one number with its unit, as time.ParseDuration reads it.
	component = `([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)`
	units     = `(KiB|MiB|GiB)?`
)

// special are the rules of single types and settings that the tags do not have: forms that exclude each other, and text
// that YAML takes for a number.
var special = map[string]func(*schema){
	"KeyPair": func(s *schema) {
		s.OneOf = []schema{{Required: []string{"cert", "key"}}, {Required: []string{"pkcs12"}}}
	},
	"Redirect.port": func(s *schema) {
		s.Type, s.Pattern, s.Minimum, s.Maximum = []string{"string", "integer"}, `^([1-9][0-9]{0,4}|#\{port\})$`, new(1), new(65535)
	},
	"Tracing.sample": func(s *schema) {
		s.Type, s.Pattern, s.Minimum, s.Maximum = []string{"string", "number"}, `^(0|1|0?\.[0-9]+|1\.0+)$`, new(0), new(1)
	},
	"Secret": func(s *schema) { s.OneOf = []schema{{Required: []string{"file"}}, {Required: []string{"env"}}} },
	"Health.status": func(s *schema) {
		s.Type, s.Pattern, s.Minimum, s.Maximum = []string{"string", "integer"}, `^[1-5][0-9]{2}(-[1-5][0-9]{2})?(,[1-5][0-9]{2}(-[1-5][0-9]{2})?)*$`, new(100), new(599)
	},
}

type generator struct {
	comments map[string]string // of types, and of fields as Type.Field
	defs     *ordered
	known    map[string]bool // names in defs
	used     map[string]bool // rules of special
}

func makeSchema() ([]byte, error) {
	comments, err := readComments()
	if err != nil {
		return nil, err
	}
	g := &generator{comments: comments, defs: new(ordered), known: map[string]bool{}, used: map[string]bool{}}
	root, err := g.object(reflect.TypeFor[Config]())
	if err != nil {
		return nil, err
	}
	for name := range special {
		if !g.used[name] {
			return nil, fmt.Errorf("%s in the table special is no type or setting", name)
		}
	}
	root.Schema, root.Title, root.Definitions = "http://json-schema.org/draft-07/schema#", "Countersign configuration", g.defs
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err = enc.Encode(root)
	return b.Bytes(), err
}

// readComments returns the comments of this package's types and their fields, each as one line.
func readComments() (map[string]string, error) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	line := func(c *ast.CommentGroup) string { return strings.Join(strings.Fields(c.Text()), " ") }
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		for _, d := range file.Decls {
			block, ok := d.(*ast.GenDecl)
			if !ok || block.Tok != token.TYPE || len(block.Specs) != 1 {
				continue
			}
			spec := block.Specs[0].(*ast.TypeSpec)
			all[spec.Name.Name] = line(block.Doc)
			if st, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range st.Fields.List {
					for _, n := range f.Names {
						all[spec.Name.Name+"."+n.Name] = line(f.Doc)
					}
				}
			}
		}
	}
	return all, nil
}

// comment returns the comment of a type or field; one that has none cannot be explained to anybody.
func (g *generator) comment(name string) (string, error) {
	if text := g.comments[name]; text != "" {
		return text, nil
	}
	return "", fmt.Errorf("%s has no comment, which is what editors show", name)
}

// object is the schema of a struct.
func (g *generator) object(t reflect.Type) (*schema, error) {
	text, err := g.comment(t.Name())
	if err != nil {
		return nil, err
	}
	long := &schema{Type: "object", MinProps: 1, Properties: new(ordered), Additional: false}
	var short *schema
	for _, f := range fieldsOf(t) {
		field := t.Field(f.index)
		if f.short {
			short = words(f.enum)
			if f.key == "-" {
				continue
			}
		}
		s, err := g.value(field.Type, f)
		if err != nil {
			return nil, err
		}
		if s.Description, err = g.comment(t.Name() + "." + field.Name); err != nil {
			return nil, err
		}
		// What is called CABundle in Go is called ca_bundle by whoever reads this.
		if rest, ok := strings.CutPrefix(s.Description, field.Name+" "); ok {
			s.Description = f.key + " " + rest
		}
		g.specialise(t.Name()+"."+f.key, s)
		long.Properties.put(f.key, s)
		if f.required {
			long.Required = append(long.Required, f.key)
		}
	}
	g.specialise(t.Name(), long)
	if short != nil {
		return &schema{Description: text, AnyOf: []schema{*short, *long}}, nil
	}
	long.Description = text
	return long, nil
}

func (g *generator) specialise(name string, s *schema) {
	if rule := special[name]; rule != nil {
		rule(s)
		g.used[name] = true
	}
}

// value is the schema of a field or item; it has no description yet.
func (g *generator) value(t reflect.Type, f rules) (*schema, error) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var err error
	switch {
	case t == durationType || t == sizeType:
		return g.quantity(t, f.zero)
	case t.Kind() == reflect.Struct:
		if !g.known[t.Name()] {
			g.known[t.Name()] = true
			var s *schema
			if s, err = g.object(t); err == nil {
				g.defs.put(t.Name(), s)
			}
		}
		return &schema{Ref: "#/definitions/" + t.Name()}, err
	case t.Kind() == reflect.Map:
		s := &schema{Type: "object", MinProps: 1}
		s.Additional, err = g.value(t.Elem(), rules{})
		return s, err
	case t.Kind() == reflect.Slice:
		s := &schema{Type: "array", MinItems: 1}
		s.Items, err = g.value(t.Elem(), rules{enum: f.enum})
		return s, err
	case t.Kind() == reflect.Bool:
		return &schema{Type: "boolean"}, nil
	case t.Kind() == reflect.Int && f.zero:
		return &schema{Type: "integer", Minimum: new(0)}, nil
	case t.Kind() == reflect.Int:
		return &schema{Type: "integer", Minimum: new(1)}, nil
	case t.Kind() == reflect.String && len(f.enum) > 0:
		return words(f.enum), nil
	case t.Kind() == reflect.String:
		return &schema{Type: "string", MinLength: 1}, nil
	}
	return nil, fmt.Errorf("no schema for fields of type %v", t)
}

// quantity is the schema of a duration or size. The first sentence of the type's comment says what it looks like; the
// second is about the zero value in Go.
func (g *generator) quantity(t reflect.Type, zero bool) (*schema, error) {
	name := t.Name()
	if zero {
		name += "OrZero"
	}
	ref := &schema{Ref: "#/definitions/" + name}
	if g.known[name] {
		return ref, nil
	}
	text, err := g.comment(t.Name())
	if err != nil {
		return nil, err
	}
	text, _, _ = strings.Cut(text, ". ")
	s := &schema{Description: strings.TrimSuffix(text, ".") + ".", Type: []string{"string", "integer"}}
	switch {
	case t == durationType && zero:
		s.Pattern, s.Minimum, s.Maximum = `^\+?(0|(`+component+`)+)$`, new(0), new(0)
		s.Description += " 0 is allowed."
	case t == durationType:
		s.Type, s.Pattern, s.AllOf = "string", `^\+?(`+component+`)+$`, []schema{{Pattern: "[1-9]"}}
	case zero:
		s.Pattern, s.Minimum = `^(0|[1-9][0-9]*)`+units+`$`, new(0)
		s.Description += " 0 is allowed."
	default:
		s.Pattern, s.Minimum = `^[1-9][0-9]*`+units+`$`, new(1)
	}
	g.known[name] = true
	g.defs.put(name, s)
	return ref, nil
}

// words is the schema of an enumeration. The decoder takes 1.2 for text, editors for a number, so both are listed.
func words(enum []string) *schema {
	s := new(schema)
	for _, w := range enum {
		s.Enum = append(s.Enum, w)
	}
	for _, w := range enum {
		if number := json.Number(w); json.Valid([]byte(w)) {
			s.Enum = append(s.Enum, number)
		}
	}
	if len(s.Enum) == len(enum) {
		s.Type = "string"
	}
	return s
}
