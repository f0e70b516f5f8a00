package config

import (
	"crypto/sha256"
	"slices"
)

// Parser parses files for one load of a configuration after another, and does not parse again what has neither another
// name nor another text: decoding a file of thousands of hosts takes longer than all else in a reload. What a file says
// depends on nothing but these two. The zero value remembers nothing. It is for one goroutine.
type Parser struct {
	before, now map[parsedAs]parsed
	fresh       int // texts that were parsed and not remembered
}

// parsedAs is what decides what a file says and how its problems are shown.
type parsedAs struct {
	name string
	text [sha256.Size]byte
	part bool
}

type parsed struct {
	file     *File
	problems Problems
}

// Next returns a Parser that remembers what p has parsed or remembered itself, and nothing older. A nil p is fine.
func (p *Parser) Next() *Parser {
	if p == nil {
		return new(Parser)
	}
	return &Parser{before: p.now}
}

// Fresh is the number of files that were parsed because they were not remembered.
func (p *Parser) Fresh() int { return p.fresh }

// Parse is the function Parse. The File is the caller's, for Include; its settings may be shared and must not be changed.
func (p *Parser) Parse(name string, src []byte) (*File, Problems) {
	made := p.recall(parsedAs{name, sha256.Sum256(src), false}, func() (*File, Problems) { return Parse(name, src) })
	return made.file.copy(), slices.Clone(made.problems)
}

// ParsePart is the function ParsePart. The File may be shared and must not be changed.
func (p *Parser) ParsePart(name string, src []byte) (*File, Problems) {
	made := p.recall(parsedAs{name, sha256.Sum256(src), true}, func() (*File, Problems) { return ParsePart(name, src) })
	return made.file, slices.Clone(made.problems)
}

func (p *Parser) recall(as parsedAs, parse func() (*File, Problems)) parsed {
	made, ok := p.now[as]
	if !ok {
		if made, ok = p.before[as]; !ok {
			made.file, made.problems = parse()
			p.fresh++
		}
		if p.now == nil {
			p.now = make(map[parsedAs]parsed)
		}
		p.now[as] = made
	}
	return made
}

// copy is a File to which others can be added by Include, which leaves f as it is.
func (f *File) copy() *File {
	out, whole := *f, *f.Partial
	out.Partial = &whole
	if out.Config != nil {
		out.Config = out.Partial
	}
	return &out
}
