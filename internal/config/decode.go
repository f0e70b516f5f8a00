package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// The bounds of what is read. The file is written by the operator today, but will also come through an API, so one
// small file must not cost much memory or time.
const (
	maxSource   = 4 << 20 // bytes
	maxDepth    = 64      // collections inside each other, aliases followed; the format itself needs 9
	maxNodes    = 100_000 // nodes visited, an aliased one each time it is used
	maxName     = 128     // bytes of a key: paths repeat it
	maxScalar   = 4096    // bytes of a value: an alias repeats it
	maxProblems = 200     // more help nobody
)

const unsupported = "known, but not supported by this version"

// laterKeys are the keys of the design that this version does not have. A key such as allow changes who gets in, so it
// must never look like a typing mistake that can be deleted without a thought.
var laterKeys = map[reflect.Type][]string{
	reflect.TypeFor[Config]():      {"admin", "keystores", "cluster", "shadow"},
	reflect.TypeFor[Bundle]():      {"pki", "spiffe"},
	reflect.TypeFor[TLS]():         {"legacy_tls10_insecure"},
	reflect.TypeFor[Host]():        {"shadow"},
	reflect.TypeFor[Route]():       {"retry", "exempt"},
	reflect.TypeFor[Match]():       {"host"},
	reflect.TypeFor[UpstreamTLS](): {"spki", "min_version"},
}

var (
	durationType = reflect.TypeFor[Duration]()
	sizeType     = reflect.TypeFor[Size]()
)

// rules are the struct tags of one field; see the package comment.
type rules struct {
	key            string
	index          int
	required, zero bool
	short, lines   bool
	enum, later    []string
}

// shape is what the decoder needs to know of a struct type. It is made once for each type: reading tags takes longer than
// decoding what they are about.
type shape struct {
	fields []rules  // those that have a key
	keys   []string // of fields
	short  *rules   // the field that a scalar in place of the mapping gives; nil for none
}

var shapes sync.Map // of *shape by reflect.Type

func shapeOf(t reflect.Type) *shape {
	if s, ok := shapes.Load(t); ok {
		return s.(*shape)
	}
	all := fieldsOf(t)
	s := new(shape)
	if i := slices.IndexFunc(all, func(f rules) bool { return f.short }); i >= 0 {
		s.short = &all[i]
	}
	for _, f := range all {
		if f.key != "-" {
			s.fields, s.keys = append(s.fields, f), append(s.keys, f.key)
		}
	}
	shapes.Store(t, s)
	return s
}

// fieldsOf reads the tags of a struct type, in the order in which the fields are declared.
func fieldsOf(t reflect.Type) []rules {
	list := func(s string) []string {
		return slices.DeleteFunc(strings.Split(s, ","), func(w string) bool { return w == "" })
	}
	all := make([]rules, t.NumField())
	for i := range all {
		tag := t.Field(i).Tag
		all[i] = rules{
			key: tag.Get("yaml"), index: i, enum: list(tag.Get("enum")), later: list(tag.Get("later")),
			required: tag.Get("required") == "true", zero: tag.Get("zero") == "true", short: tag.Get("short") == "true", lines: tag.Get("lines") == "true",
		}
	}
	return all
}

type decoder struct {
	file     *File
	problems Problems
}

// ParsePart is Parse for an included file; the problems name it.
func ParsePart(name string, src []byte) (*File, Problems) {
	file, problems := Parse(name, src)
	for i := range problems {
		problems[i].In = file
	}
	return file, problems
}

// Parse decodes one configuration file and reports everything that can be said about it without opening another file
// and without comparing one setting with another. The File is never nil, so that problems can be rendered; its Config is
// nil when there is an error among them.
func Parse(name string, src []byte) (*File, Problems) {
	file := &File{Name: name, Source: src, Partial: new(Config), layout: new(layout)}
	d := &decoder{file: file}
	if root := d.load(); root != nil {
		for root.Kind == yaml.AliasNode {
			root = root.Alias
		}
		whole := file.add(spot{in: -1, index: -1}, place{at(root), at(root)})
		d.value(root, whole, &rules{}, reflect.ValueOf(file.Partial).Elem())
		file.spots = slices.Clip(file.spots)
	}
	d.problems.Sort()
	if !d.problems.HasErrors() {
		file.Config = file.Partial
	}
	return file, d.problems
}

// problem is add for a problem with the setting that has this number; pos is where to point.
func (d *decoder) problem(pos Pos, setting int, next, format string, args ...any) {
	d.add(pos, d.file.path(setting), next, format, args...)
}

func (d *decoder) add(pos Pos, path, next, format string, args ...any) {
	switch n := len(d.problems); {
	case n > maxProblems:
		return
	case n == maxProblems:
		next, format, args = "correct these first", "too many problems: only the first %d found are shown", []any{maxProblems}
	}
	d.problems = append(d.problems, Problem{Path: path, Pos: d.file.clamp(pos), Next: next, Message: fmt.Sprintf(format, args...)})
}

// load turns the source into one bounded tree of nodes, or reports why not and returns nil.
func (d *decoder) load() *yaml.Node {
	if n := len(d.file.Source); n > maxSource {
		// Not split into lines either: what is too large to be read is too large to be shown.
		d.file.Source = nil
		d.add(Pos{1, 1}, "", "split the service, or look for a file that was given by mistake", "the file has %d bytes, expected at most %d", n, maxSource)
		return nil
	}
	if !d.readable() {
		return nil
	}
	loader, err := yaml.NewLoader(bytes.NewReader(bytes.TrimPrefix(d.file.Source, bom)), yaml.WithPlugin(depthLimit{}))
	if err != nil {
		d.add(Pos{1, 1}, "", "report this as a bug in countersign", "the yaml library refused its options: %v", err)
		return nil
	}
	var document, second yaml.Node
	switch err := loader.Load(&document); {
	case errors.Is(err, io.EOF):
		d.noSettings(Pos{1, 1})
		return nil
	case err != nil:
		d.syntax(err)
		return nil
	}
	switch err := loader.Load(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		d.syntax(err)
		return nil
	default:
		d.add(at(&second), "", `remove the line "---" and what follows it, or put it into a file of its own`, "found a second document, expected one document in a file")
		return nil
	}
	root := &document
	if root.Kind == yaml.DocumentNode && len(root.Content) == 1 {
		root = root.Content[0]
	}
	visited := 0
	if node, message := bound(root, 0, &visited); node != nil {
		d.add(at(node), "", "settings are short: look for a wrong file, or for aliases that contain aliases", "%s", message)
		return nil
	}
	return root
}

// readable reports the first character that editors and terminals show differently from how YAML reads it: an
// invisible line break or a reversed run of text would let a file say something else than what its reviewer saw.
func (d *decoder) readable() bool {
	line, column := 1, 1
	text := bytes.TrimPrefix(d.file.Source, bom)
	for i := 0; i < len(text); {
		if c := text[i]; ' ' <= c && c < 0x7f {
			i, column = i+1, column+1
			continue
		}
		r, size := utf8.DecodeRune(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			d.add(Pos{line, column}, "", "save the file as UTF-8", "found byte 0x%02x, expected UTF-8", text[i])
			return false
		case r == '\r' && i+1 < len(text) && text[i+1] == '\n':
			column-- // part of the line break
		case r == '\t', r == '\n':
		case unicode.IsControl(r), r == '\u2028', r == '\u2029', unicode.Is(unicode.Bidi_Control, r), r == '\ufeff':
			d.add(Pos{line, column}, "", `remove it; inside double quotes it can be written as \uXXXX`, "found the invisible character %U, expected none", r)
			return false
		}
		if i, column = i+size, column+1; r == '\n' {
			line, column = line+1, 1
		}
	}
	return true
}

// depthLimit stops the parser itself; bound counts again, because the parser counts indents and brackets apart and does
// not follow aliases.
type depthLimit struct{}

func (depthLimit) CheckDepth(depth int, _ *yaml.DepthContext) error {
	if depth > maxDepth {
		return fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	return nil
}

func (depthLimit) CheckAlias(int, int) error { return nil }

// bound walks the tree as the decoder could and returns the node at which a bound is passed, with what to say. An alias
// to a node around itself ends at the depth bound.
func bound(n *yaml.Node, depth int, visited *int) (*yaml.Node, string) {
	if *visited++; *visited > maxNodes {
		return n, fmt.Sprintf("the file has more than %d nodes, aliases written out", maxNodes)
	}
	if depth > maxDepth {
		return n, fmt.Sprintf("nested deeper than %d levels, aliases written out", maxDepth)
	}
	if len(n.Value) > maxScalar {
		return n, fmt.Sprintf("found a text of %d bytes, expected at most %d", len(n.Value), maxScalar)
	}
	if n.Kind == yaml.AliasNode {
		return bound(n.Alias, depth+1, visited)
	}
	for _, c := range n.Content {
		if bad, message := bound(c, depth+1, visited); bad != nil {
			return bad, message
		}
	}
	return nil, ""
}

func (d *decoder) noSettings(pos Pos) {
	d.add(pos, "", "begin with listeners:", "the file has no settings, expected at least listeners")
}

func (d *decoder) syntax(err error) {
	pos, message := Pos{1, 1}, err.Error()
	if e, ok := errors.AsType[*yaml.LoadError](err); ok {
		pos, message = Pos{e.Mark.Line, e.Mark.Column}, e.Message
		if e.ContextMsg != "" {
			message = e.ContextMsg + ": " + message
		}
	}
	d.add(pos, "", "correct this first: nothing after it was read", "not valid YAML: %s", message)
}

// value decodes n, the value of the setting that has this number, into v. Every kind of value passes here, so this is
// where emptiness, tags and aliases are dealt with.
func (d *decoder) value(n *yaml.Node, setting int, f *rules, v reflect.Value) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	here := d.file.at(setting).show
	if n.Style&yaml.TaggedStyle != 0 {
		d.problem(here, setting, "remove the tag; the key already says what is expected", "found the YAML tag %s, expected none", brief(n.Tag))
		return
	}
	if empty(n) {
		path := d.file.path(setting)
		if path == "" {
			d.noSettings(here)
			return
		}
		name, parent := last(path)
		if strings.HasPrefix(name, "[") {
			parent, _ = last(parent)
			name = parent + name
		}
		d.add(here, path, "give it a value, or remove it to get the default", "empty setting: %s has no value", name)
		return
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, setting, v)
	case reflect.Map:
		if d.kind(n, yaml.MappingNode, here, setting, "a mapping from names to settings") {
			v.Set(reflect.MakeMap(v.Type()))
			d.pairs(n, setting, nil, func(key string, _ int, value *yaml.Node, setting int) {
				item := reflect.New(v.Type().Elem()).Elem()
				d.value(value, setting, &rules{}, item)
				v.SetMapIndex(reflect.ValueOf(key), present(item))
			})
		}
	case reflect.Slice:
		if d.kind(n, yaml.SequenceNode, here, setting, "a list, such as [a, b]") {
			v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
			each := &rules{enum: f.enum, later: f.later}
			for i, c := range n.Content {
				item := d.file.add(spot{in: int32(setting), index: int32(i)}, place{at(c), at(c)})
				d.value(c, item, each, v.Index(i))
				v.Index(i).Set(present(v.Index(i)))
			}
		}
	default:
		d.scalar(n, here, setting, f, v)
	}
}

// present replaces a nil pointer, left by an item that was refused, by an empty item: names stay known and indexes stay
// those of the file, and whoever reads a Partial meets no nil.
func present(item reflect.Value) reflect.Value {
	if item.Kind() == reflect.Pointer && item.IsNil() {
		return reflect.New(item.Type().Elem())
	}
	return item
}

// empty reports whether a value says nothing. An empty list of a security setting has meant "no rule", "all" and
// "default" in different products, so here it means nothing at all.
func empty(n *yaml.Node) bool {
	if n.Kind == yaml.ScalarNode {
		return n.ShortTag() == "!!null" || strings.TrimSpace(n.Value) == ""
	}
	return len(n.Content) == 0
}

func (d *decoder) kind(n *yaml.Node, want yaml.Kind, pos Pos, setting int, expected string) bool {
	if n.Kind != want {
		d.problem(pos, setting, "", "expected %s, found %s", expected, describe(n))
	}
	return n.Kind == want
}

// pairs calls visit for each entry of a mapping whose key is a plain, unrepeated name, and reports the others. known are
// the keys that are expected; visit gets the key's index in them, or -1, and the number of the setting.
func (d *decoder) pairs(n *yaml.Node, in int, known []string, visit func(key string, index int, value *yaml.Node, setting int)) {
	var room [16]*yaml.Node
	seen := keysSeen{few: room[:0]}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, value := n.Content[i], n.Content[i+1]
		first, again := seen.line(k.Value)
		switch name := k.Value; {
		case k.Kind != yaml.ScalarNode || k.Style&yaml.TaggedStyle != 0 || empty(k):
			d.problem(at(k), in, "", "expected a name as key, found %s", describe(k))
		case name == "<<":
			d.problem(at(k), in, "write the keys out where they apply", `merge keys ("<<") are not allowed: they hide what applies where`)
		case len(name) > maxName:
			d.problem(at(k), in, "", "the key %s has %d bytes, expected at most %d", brief(name), len(name), maxName)
		case control(name):
			d.problem(at(k), in, "", "the key %s has a control character, expected none", brief(name))
		case again:
			d.add(at(k), Path(d.file.path(in), name), "keep one of the two", "duplicate key %q, first given in line %d", name, first)
		default:
			seen.add(k)
			index := slices.Index(known, name)
			if index >= 0 {
				name = known[index] // which keeps no part of the file in memory
			}
			// A scalar is shown where it stands; a collection or nothing at its key, because it begins lines below.
			p := place{key: at(k), show: at(k)}
			target := value
			for target.Kind == yaml.AliasNode {
				target = target.Alias
			}
			if target.Kind == yaml.ScalarNode && !empty(target) {
				p.show = at(value)
			}
			visit(name, index, value, d.file.add(spot{name: name, in: int32(in), index: -1}, p))
		}
	}
}

// keysSeen are the keys of one mapping. Most have few, for which a map would cost more than it saves.
type keysSeen struct {
	few  []*yaml.Node
	many map[string]int
}

func (s *keysSeen) add(k *yaml.Node) {
	switch {
	case s.many != nil:
		s.many[k.Value] = k.Line
	case len(s.few) < cap(s.few):
		s.few = append(s.few, k)
	default:
		s.many = map[string]int{k.Value: k.Line}
		for _, k := range s.few {
			s.many[k.Value] = k.Line
		}
	}
}

// line is where the key was given first.
func (s *keysSeen) line(name string) (line int, ok bool) {
	if s.many != nil {
		line, ok = s.many[name]
		return line, ok
	}
	for _, k := range s.few {
		if k.Value == name {
			return k.Line, true
		}
	}
	return 0, false
}

func (d *decoder) structure(n *yaml.Node, setting int, v reflect.Value) {
	shape := shapeOf(v.Type())
	all, keys := shape.fields, shape.keys
	here := d.file.at(setting).show
	if shape.short != nil && n.Kind == yaml.ScalarNode {
		d.scalar(n, here, setting, shape.short, v.Field(shape.short.index))
		return
	}
	if n.Kind != yaml.MappingNode {
		d.kind(n, yaml.MappingNode, here, setting, "a mapping with the keys "+strings.Join(keys, ", "))
		return
	}
	given := make([]bool, len(all))
	d.pairs(n, setting, keys, func(key string, i int, value *yaml.Node, setting int) {
		if i >= 0 {
			given[i] = true
			d.value(value, setting, &all[i], v.Field(all[i].index))
			return
		}
		pos := d.file.at(setting).key
		if slices.Contains(laterKeys[v.Type()], key) {
			d.problem(pos, setting, "remove it only if the rest of the file is right without it", "the key %q is %s", key, unsupported)
			return
		}
		// One mistake, one problem: the key that was meant is not reported as missing as well.
		if i := slices.Index(keys, Suggest(key, keys)); i >= 0 {
			given[i] = true
		}
		d.problem(pos, setting, didYouMean(key, keys, "remove it, or use one of these keys"), "unknown key %q, expected one of: %s", key, strings.Join(keys, ", "))
	})
	for i, f := range all {
		if f.required && !given[i] {
			d.problem(here, setting, "add "+f.key+":", "missing required key %q", f.key)
		}
	}
}

// scalar decodes text, numbers, durations and sizes. It looks at the text as written and never at the type YAML guesses
// for it: "off" is a word here, not a boolean, and 1.2 is a version, not a float.
func (d *decoder) scalar(n *yaml.Node, pos Pos, setting int, f *rules, v reflect.Value) {
	if n.Kind == yaml.ScalarNode && v.Kind() == reflect.String && (len(f.enum) == 0 || slices.Contains(f.enum, n.Value)) && !control(n.Value) {
		v.SetString(n.Value)
		return
	}
	expected := "text"
	switch {
	case len(f.enum) > 0:
		expected = "one of: " + strings.Join(f.enum, ", ")
	case v.Type() == durationType:
		expected = "a duration with its unit, such as 500ms, 10s or 1h30m"
	case v.Type() == sizeType:
		expected = "a number of bytes, such as 4096 or 32KiB"
	case v.Kind() == reflect.Int:
		expected = "a whole number, such as 4"
	case v.Kind() == reflect.Bool:
		expected = "true or false"
	}
	if n.Kind == yaml.MappingNode && slices.Contains(f.later, "{"+n.Content[0].Value+"}") {
		d.problem(pos, setting, "use "+expected, "a mapping with %s is %s, expected %s", brief(n.Content[0].Value), unsupported, expected)
		return
	}
	if !d.kind(n, yaml.ScalarNode, pos, setting, expected) {
		return
	}
	text := n.Value
	if v.Kind() == reflect.String {
		switch {
		case control(text) && !(f.lines && !control(strings.ReplaceAll(text, "\n", " "))):
			d.problem(pos, setting, "", "found a control character in %s, expected none", brief(text))
		case len(f.enum) == 0 || slices.Contains(f.enum, text):
			v.SetString(text)
		case slices.ContainsFunc(f.later, func(w string) bool {
			prefix, isPrefix := strings.CutSuffix(w, "*")
			return text == w || isPrefix && strings.HasPrefix(text, prefix)
		}):
			d.problem(pos, setting, "use "+expected, "%s is %s, expected %s", brief(text), unsupported, expected)
		default:
			d.problem(pos, setting, didYouMean(text, f.enum, ""), "found %s, expected %s", brief(text), expected)
		}
		return
	}
	if v.Kind() == reflect.Bool {
		// Two spellings only: what YAML 1.1 also took for a boolean (yes, on, Y) is read differently by different people.
		switch text {
		case "true", "false":
			v.SetBool(text == "true")
		default:
			d.problem(pos, setting, "", "found %s, expected %s", brief(text), expected)
		}
		return
	}
	var number int64
	var err error
	switch {
	case v.Type() == durationType:
		var span time.Duration
		span, err = time.ParseDuration(text)
		number = int64(span)
	case v.Type() == sizeType:
		number, err = parseSize(text)
	case v.Kind() == reflect.Int:
		number, err = parseWhole(text)
	default:
		// A new kind of field in the structs; TestFieldKinds meets it before any user does.
		panic("config: no decoding for fields of type " + v.Type().String())
	}
	switch {
	case err != nil:
		next := ""
		if _, plain := parseWhole(text); plain == nil && v.Type() == durationType {
			next = "write the unit, for example " + brief(text+"s")
		}
		d.problem(pos, setting, next, "found %s, expected %s", brief(text), expected)
	case number < 0:
		d.problem(pos, setting, "", "found %s, expected nothing negative", brief(text))
	case number == 0 && !f.zero:
		d.problem(pos, setting, "remove the key to get the default, or give a value", "found %s: zero is neither a limit nor \"no limit\" here", brief(text))
	default:
		v.SetInt(number)
	}
}

var errNumber = errors.New("not a number")

// parseWhole takes decimal digits only: YAML's 010, 0x10 and 1_000 are read differently by different people.
func parseWhole(text string) (int64, error) {
	digits := strings.TrimPrefix(text, "-")
	if len(digits) > 1 && digits[0] == '0' || strings.ContainsFunc(digits, func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, errNumber
	}
	return strconv.ParseInt(text, 10, 64)
}

func parseSize(text string) (int64, error) {
	for shift, unit := range map[int]string{10: "KiB", 20: "MiB", 30: "GiB"} {
		if digits, ok := strings.CutSuffix(text, unit); ok {
			n, err := parseWhole(digits)
			if err != nil || n > math.MaxInt64>>shift || n < math.MinInt64>>shift {
				return 0, errNumber
			}
			return n << shift, nil
		}
	}
	return parseWhole(text)
}

func at(n *yaml.Node) Pos { return Pos{n.Line, n.Column} }

func control(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "the alias " + brief("*"+n.Value)
	}
	if empty(n) {
		return "nothing"
	}
	return brief(n.Value)
}

// brief quotes what the file says, cut to a length that leaves the message readable.
func brief(s string) string {
	if len(s) > 4*64 {
		s = strings.ToValidUTF8(s[:4*64], "")
	}
	if runes := []rune(s); len(runes) > 64 {
		s = string(runes[:63]) + "…"
	}
	return strconv.Quote(s)
}

func didYouMean(name string, among []string, otherwise string) string {
	if s := Suggest(name, among); s != "" {
		return "did you mean " + strconv.Quote(s) + "?"
	}
	return otherwise
}
