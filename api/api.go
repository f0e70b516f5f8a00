// Package api holds what other programs read about this one: the JSON Schema of the configuration. It holds no code, and
// the schema decides nothing: internal/config does.
package api

import _ "embed"

// ConfigSchema is the JSON Schema (draft-07) of the configuration file, for editors. A test in internal/config makes it
// from the structs (make docs) and holds it to them.
//
//go:embed config.schema.json
var ConfigSchema string
