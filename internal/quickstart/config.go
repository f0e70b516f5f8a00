package quickstart

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"

	"countersign/api"
)

const (
	configFile = "countersign.yaml"
	schemaFile = "countersign.schema.json"
	// schemaLine is the first line of a configuration. Editors find the schema by it.
	schemaLine = "# yaml-language-server: $schema=./" + schemaFile + "\n"
	// configMark begins the first line after schemaLine of a configuration that quickstart may replace.
	configMark = "# Made by countersign quickstart."
)

// madeHere reports whether quickstart made a configuration. Those of its first versions have no schemaLine.
func madeHere(conf []byte) bool {
	return strings.HasPrefix(strings.TrimPrefix(string(conf), schemaLine), configMark)
}

// configText is the configuration, short enough to be read whole. Ports stand in capitals.
const configText = schemaLine + configMark + ` Change it and try: countersign check -c countersign.yaml
# The next quickstart writes it anew and keeps yours as countersign.yaml.old. Paths are relative to this file.

ops: {listen: "127.0.0.1:OPS"}       # /livez /readyz /metrics
state: state                         # journal.db: what ended badly and why, and which clients were here

# Whom we believe. Two stores, because a client must never pass for a backend.
trust_stores:
  clients:
    ca_bundle: {file: pki/clients.pem}
    revocation:
      crls: [{file: pki/clients.crl}]      # bob is on it; once there is a list, it must be current
  internal:
    ca_bundle: {file: pki/internal-ca.pem} # the backends

listeners:
  public:
    listen: "127.0.0.1:PUBLIC"
    protocol: https                        # TLS ends here; requests are routed one by one
    hosts:
      # Front-end mTLS with TLS offload: the client proves itself here, the backend gets plain HTTP and is told who it is.
      - names: [offload.test]
        certificate: {cert: pki/server.pem, key: pki/server.key}
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [rfc9440, alb]   # Client-Cert, and the headers of AWS ALB
        routes: [{upstream: http}]

      # TLS bridging: as above, but encrypted again to a backend that is verified.
      - names: [bridging.test]
        certificate: {cert: pki/server.pem, key: pki/server.key}
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [rfc9440, alb]
        routes: [{upstream: https}]

      # Chained mTLS: the client proves itself to us, and we prove ourselves to the backend.
      - names: [chained.test]
        certificate: {cert: pki/server.pem, key: pki/server.key}
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [rfc9440, alb]
        routes: [{upstream: mtls}]

      # Back-end mTLS: clients need no certificate, we prove ourselves to the backend. One that is sent must be good.
      - names: [backend.test]
        certificate: {cert: pki/server.pem, key: pki/server.key}
        client_auth: {mode: request, trust_store: clients}
        identity_headers: [rfc9440, alb]
        routes: [{upstream: mtls}]

  # TLS passthrough: only the server name is read. The client proves itself to the backend, and we cannot tell it anything.
  passthrough:
    listen: "127.0.0.1:PASSTHROUGH"
    protocol: passthrough
    hosts:
      - names: [passthrough.test]
        upstream: through

upstreams:
  http:
    targets: ["http://127.0.0.1:BACKEND1"]
  https:
    targets: ["https://127.0.0.1:BACKEND2"]
    tls: {server_name: https.internal, trust_store: internal}  # verification cannot be switched off
  mtls:
    targets: ["https://127.0.0.1:BACKEND3"]
    tls:
      server_name: mtls.internal
      trust_store: internal
      client_certificates: [{cert: pki/edge.pem, key: pki/edge.key}]  # who we are to the backend
  through:
    targets: ["tcp://127.0.0.1:BACKEND3"]
`

// configFor is the configuration for these ports.
func configFor(p ports) []byte {
	r := strings.NewReplacer(
		"OPS", strconv.Itoa(p.ops), "PUBLIC", strconv.Itoa(p.public), "PASSTHROUGH", strconv.Itoa(p.passthrough),
		"BACKEND1", strconv.Itoa(p.http), "BACKEND2", strconv.Itoa(p.https), "BACKEND3", strconv.Itoa(p.mtls))
	return []byte(r.Replace(configText))
}

var anyPort = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)

// writeConfig writes the configuration and its schema. A configuration that the user changed is kept beside it; other
// ports alone are no change.
func writeConfig(f *folder, p ports) error {
	if err := f.write(schemaFile, []byte(api.ConfigSchema), public); err != nil {
		return err
	}
	next := configFor(p)
	old, err := f.read(configFile)
	if err != nil || bytes.Equal(old, next) {
		return err
	}
	if old != nil && !bytes.Equal(anyPort.ReplaceAll(old, nil), anyPort.ReplaceAll(next, nil)) {
		if err := f.write(configFile+".old", old, public); err != nil {
			return err
		}
	}
	return f.write(configFile, next, public)
}
