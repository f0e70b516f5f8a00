package interop_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// web is a configuration before nginx as a web server.
const web = `
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: web}]
  plain:
    listen: $plain
    protocol: http
    hosts: [{names: [off.test], routes: [{upstream: web}]}]
upstreams:
  web: {targets: ["http://$web"]}
`

// noise is n bytes that do not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func sum(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d bytes, %x", len(b), sha256.Sum256(b))
}

// serveWeb runs nginx as a web server behind countersign, and returns what it serves from: page.txt (compressed on the fly,
// so chunked), assembled.html (chunked), big.bin, and put/ for uploads.
func serveWeb(t *testing.T) (*balancer, string) {
	p, addr := newPKI(t), freeAddress(t)
	dir := startNginx(t, `
  server {
    listen `+addr+`; root www;
    add_header X-Connection "$connection/$connection_requests" always;
    location / { gzip on; gzip_types text/plain; gzip_min_length 1; gzip_proxied any; gzip_http_version 1.0; }
    location /assembled.html { ssi on; ssi_types *; }
    location /put/ { dav_methods PUT; }
    location = /nothing { return 204; }
    location = /elsewhere { return 302 /page.txt; }
    location = /once { keepalive_timeout 0; try_files /page.txt =404; }
  }
`, addr)
	www := filepath.Join(dir, "www")
	if err := os.MkdirAll(filepath.Join(www, "put"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, www, "page.txt", bytes.Repeat([]byte("a page of text\n"), 1000))
	write(t, www, "assembled.html", []byte(`before <!--# include virtual="/page.txt" --> after`))
	write(t, www, "big.bin", noise(20<<20))
	return serve(t, p, web, map[string]string{"web": addr}), www
}

func TestNginxAsBackend(t *testing.T) {
	need(t, "nginx", "curl")
	b, www := serveWeb(t)
	page := sum(t, filepath.Join(www, "page.txt"))
	file := filepath.Join(t.TempDir(), "got")
	url := func(path string) string { return b.url("public", "a.test", path) }
	// get runs curl and wants exit status 0 and all of texts in what -v shows.
	get := func(t *testing.T, args []string, texts ...string) result {
		t.Helper()
		os.Remove(file)
		r := b.curl(t, "public", b.pki.alice, args...)
		if r.code != 0 {
			t.Fatalf("curl: %s", r)
		}
		for _, text := range texts {
			if !strings.Contains(r.err, text) {
				t.Errorf("want %q; curl: %s", text, r)
			}
		}
		return r
	}
	same := func(t *testing.T, want string) {
		t.Helper()
		if got := sum(t, file); got != want {
			t.Errorf("got %s; want %s", got, want)
		}
	}
	t.Run("keep-alive", func(t *testing.T) {
		mark := b.mark()
		r := get(t, []string{url("/page.txt"), url("/page.txt"), url("/page.txt")}, "Re-using existing connection")
		if strings.Count(r.err, "HTTP/1.1 200 OK") != 3 || strings.Count(r.err, "TLSv1.3 (OUT), TLS handshake, Client hello") != 1 {
			t.Errorf("want three answers on one connection; curl: %s", r)
		}
		b.record(t, mark, "kind=request", "reason=completed", "target_reused=true")
	})
	t.Run("backend that closes", func(t *testing.T) {
		get(t, []string{url("/once"), url("/once"), url("/page.txt")}, "Re-using existing connection")
	})
	t.Run("gzip, chunked", func(t *testing.T) {
		get(t, []string{"--compressed", "-o", file, url("/page.txt")}, "Transfer-Encoding: chunked", "Content-Encoding: gzip")
		same(t, page)
	})
	t.Run("chunked", func(t *testing.T) {
		r := get(t, []string{url("/assembled.html")}, "Transfer-Encoding: chunked")
		if !strings.HasPrefix(r.out, "before a page of text") || !strings.HasSuffix(r.out, " after") {
			t.Errorf("got %d bytes: %s", len(r.out), tail(r.out, 100))
		}
	})
	for name, alpn := range map[string]string{"HTTP 1.0": "--alpn", "HTTP 1.0 without ALPN": "--no-alpn"} {
		t.Run(name, func(t *testing.T) {
			get(t, []string{"--http1.0", alpn, "-o", file, url("/page.txt")}, "Content-Length: 15000")
			same(t, page)
			r := get(t, []string{"--http1.0", alpn, url("/assembled.html")}, "200 OK")
			if !strings.HasSuffix(r.out, " after") || strings.Contains(r.err, "chunked") {
				t.Errorf("curl: %s", r)
			}
		})
	}
	t.Run("HEAD", func(t *testing.T) {
		r := get(t, []string{"--head", url("/page.txt"), url("/big.bin")}, "Content-Length: 15000", "Content-Length: 20971520", "Re-using existing connection")
		if strings.Count(r.out, "200 OK") != 2 {
			t.Errorf("curl: %s", r)
		}
		get(t, []string{"--head", "--compressed", url("/page.txt")}, "200 OK")
	})
	t.Run("304, 204, 206, 302", func(t *testing.T) {
		r := get(t, []string{"--head", url("/big.bin")}, "ETag: ")
		_, tag, _ := strings.Cut(r.out, "ETag: ")
		tag, _, _ = strings.Cut(tag, "\r\n")
		r = get(t, []string{"-H", "If-None-Match: " + tag, url("/big.bin"), url("/nothing"), url("/elsewhere")},
			"HTTP/1.1 304 Not Modified", "HTTP/1.1 204 No Content", "HTTP/1.1 302 ", "/page.txt\r\n", "Re-using existing connection")
		if strings.Count(r.err, "TLS handshake, Client hello") != 1 {
			t.Errorf("want one connection; curl: %s", r)
		}
		get(t, []string{"--range", "1000-1999", "-o", file, url("/big.bin")}, "HTTP/1.1 206 Partial Content", "Content-Range: bytes 1000-1999/20971520")
		if info, err := os.Stat(file); err != nil || info.Size() != 1000 {
			t.Errorf("%v, %v", info, err)
		}
	})
	t.Run("20 MB down", func(t *testing.T) {
		get(t, []string{"-o", file, url("/big.bin")}, "Content-Length: 20971520")
		same(t, sum(t, filepath.Join(www, "big.bin")))
	})
	up := write(t, t.TempDir(), "up.bin", noise(5<<20))
	uploads := []struct {
		name, file string
		args       []string
		want       string
	}{
		{"5 MB up", up, nil, "HTTP/1.1 201 Created"},
		{"5 MB up, chunked", up, []string{"-H", "Transfer-Encoding: chunked"}, "HTTP/1.1 201 Created"},
		{"2 MB up, Expect", write(t, t.TempDir(), "up2.bin", noise(2<<20)), []string{"-H", "Expect: 100-continue"}, "HTTP/1.1 100 Continue"},
		{"2 MB up, no Expect", write(t, t.TempDir(), "up3.bin", noise(2<<20)), []string{"-H", "Expect:"}, "HTTP/1.1 201 Created"},
		{"empty", write(t, t.TempDir(), "up0.bin", nil), nil, "HTTP/1.1 201 Created"},
		{"HTTP 1.0", write(t, t.TempDir(), "up1.bin", noise(100<<10)), []string{"--http1.0", "--no-alpn"}, " 201 Created"},
	}
	for i, test := range uploads {
		t.Run(test.name, func(t *testing.T) {
			name := fmt.Sprintf("/put/%d.bin", i)
			get(t, append(test.args, "--upload-file", test.file, url(name), "--next", "--cert", b.pki.alice.file, "--key", b.pki.alice.keyFile,
				"--cacert", b.pki.internal.file, "-sS", "-o", file, url(name)), test.want)
			if got, want := sum(t, www+name), sum(t, test.file); got != want {
				t.Errorf("nginx stored %s; want %s", got, want)
			}
			same(t, sum(t, test.file))
		})
	}
	t.Run("too large for the backend", func(t *testing.T) {
		for _, expect := range []string{"Expect: 100-continue", "Expect:"} {
			r := b.curl(t, "public", b.pki.alice, "-H", expect, "--upload-file", filepath.Join(www, "big.bin"), url("/put/large.bin"))
			if r.code != 0 && r.code != 55 || !strings.Contains(r.err, "HTTP/1.1 413 ") {
				t.Errorf("%s curl: %s", expect, r)
			}
		}
		get(t, []string{"-o", file, url("/page.txt")})
		same(t, page)
	})
	t.Run("many at once", func(t *testing.T) {
		dir := t.TempDir()
		r := b.curl(t, "public", b.pki.alice, "--parallel", "--parallel-immediate", "--parallel-max", "20", "-o", dir+"/#1", url("/page.txt?[1-100]"))
		if r.code != 0 {
			t.Fatalf("curl: %s", r)
		}
		files, _ := filepath.Glob(dir + "/*")
		if len(files) != 100 {
			t.Errorf("%d files", len(files))
		}
		for _, f := range files {
			if got := sum(t, f); got != page {
				t.Errorf("%s: %s", f, got)
			}
		}
	})
}

const pythonClient = `
import hashlib, http.client, json, socket, ssl, sys
port, cacert, cert, key, plain = int(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])
def context(version, cert=None, key=None):
    c = ssl.create_default_context(cafile=cacert)
    c.minimum_version = c.maximum_version = version
    if cert: c.load_cert_chain(cert, key)
    return c
class Connection(http.client.HTTPSConnection):
    def connect(self):
        self.sock = self._context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="a.test")
out = {}
for name, version in ("1.2", ssl.TLSVersion.TLSv1_2), ("1.3", ssl.TLSVersion.TLSv1_3):
    c = Connection("a.test", port, timeout=10, context=context(version, cert, key))
    answers = []
    for i in range(3):
        c.request("GET", "/page.txt", headers={"Accept-Encoding": "gzip"} if i == 1 else {})
        first = c.sock
        r = c.getresponse()
        answers.append((r.status, len(r.read()) > 100, c.sock is first))
    c.request("PUT", "/put/python-" + name, body=(b"x" * 1000 for _ in range(300)), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    r = c.getresponse(); r.read()
    c.request("GET", "/put/python-" + name)
    answers.append((r.status, hashlib.sha256(c.getresponse().read()).hexdigest() == hashlib.sha256(b"x" * 300000).hexdigest()))
    c.close()
    out[name] = answers
    try:
        c = Connection("a.test", port, timeout=10, context=context(version))
        c.request("GET", "/")
        out["missing " + name] = "status %d" % c.getresponse().status
    except ssl.SSLError as e:
        out["missing " + name] = e.reason
    # close_notify after the request: the answer still comes.
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    s = socket.create_connection(("127.0.0.1", port), 10)
    s.settimeout(10)
    t = context(version, cert, key).wrap_bio(incoming, outgoing, server_hostname="a.test")
    def pump(f):
        while True:
            try:
                return f()
            except ssl.SSLWantReadError:
                s.sendall(outgoing.read())
                data = s.recv(65536)
                if not data: incoming.write_eof()
                incoming.write(data)
    pump(t.do_handshake)
    t.write(b"GET /page.txt HTTP/1.1\r\nHost: a.test\r\n\r\n")
    try:
        t.unwrap()
    except ssl.SSLWantReadError:
        pass
    s.sendall(outgoing.read())
    s.shutdown(socket.SHUT_WR)
    raw = b""
    while True:
        data = s.recv(65536)
        if not data: break
        raw += data
    out["half " + name] = len(raw)
s = socket.create_connection(("127.0.0.1", plain), 10)
s.settimeout(10)
s.sendall(b"GET /page.txt HTTP/1.1\r\nHost: off.test\r\n\r\n")
s.shutdown(socket.SHUT_WR)
raw = b""
while True:
    data = s.recv(65536)
    if not data: break
    raw += data
out["half plain"] = len(raw)
print(json.dumps(out))
`

func TestPythonClient(t *testing.T) {
	need(t, "python3", "nginx")
	b, _ := serveWeb(t)
	r := run(t, nil, "python3", "-c", pythonClient, portOf(b.addr["public"]), b.pki.internal.file, b.pki.alice.file, b.pki.alice.keyFile, portOf(b.addr["plain"]))
	if r.code != 0 {
		t.Fatalf("python3: %s", r)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(r.out), &got); err != nil {
		t.Fatalf("%v: %s", err, r)
	}
	const good = "[[200 true true] [200 true true] [200 true true] [201 true]]"
	for what, want := range map[string]string{"1.2": good, "1.3": good,
		"missing 1.2": "SSLV3_ALERT_HANDSHAKE_FAILURE", "missing 1.3": "TLSV13_ALERT_CERTIFICATE_REQUIRED"} {
		if text := fmt.Sprint(got[what]); text != want {
			t.Errorf("%s: %s; want %s", what, text, want)
		}
	}
	for _, what := range []string{"half plain", "half 1.2", "half 1.3"} {
		if n, _ := got[what].(float64); n < 15000 {
			t.Errorf("%s: %v bytes came after the client had ended its side; want the whole page", what, n)
		}
	}
}

const nodeClient = `
const https = require('https'), fs = require('fs'), crypto = require('crypto');
const [port, ca, cert, key] = process.argv.slice(1);
const base = v => ({host: '127.0.0.1', port, servername: 'a.test', ca: fs.readFileSync(ca), headers: {Host: 'a.test'}, minVersion: v, maxVersion: v, timeout: 10000});
function call(options, body) {
  return new Promise(resolve => {
    const req = https.request(options, res => {
      const hash = crypto.createHash('sha256');
      let n = 0;
      res.on('data', d => { n += d.length; hash.update(d); });
      res.on('end', () => resolve({status: res.statusCode, bytes: n, reused: req.reusedSocket, sha: hash.digest('hex')}));
      res.on('error', e => resolve({error: e.code}));
    });
    req.on('error', e => resolve({error: e.code}));
    if (body) { for (const part of body) req.write(part); }
    req.end();
  });
}
(async () => {
  const out = {};
  for (const v of ['TLSv1.2', 'TLSv1.3']) {
    const who = {...base(v), cert: fs.readFileSync(cert), key: fs.readFileSync(key)};
    const agentOf = new https.Agent({keepAlive: true, maxSockets: 1});
    const a = await call({...who, agent: agentOf, path: '/page.txt'});
    const b = await call({...who, agent: agentOf, path: '/page.txt'});
    const parts = Array(50).fill(Buffer.alloc(10000, 'y'));
    const put = await call({...who, agent: agentOf, method: 'PUT', path: '/put/node-' + v}, parts);
    const back = await call({...who, agent: agentOf, path: '/put/node-' + v});
    agentOf.destroy();
    out[v] = [a.status, a.bytes, a.reused, b.status, b.reused, put.status, back.sha === crypto.createHash('sha256').update(Buffer.concat(parts)).digest('hex')];
    out['missing ' + v] = (await call({...base(v), path: '/'})).error;
  }
  console.log(JSON.stringify(out));
})();
`

func TestNodeClient(t *testing.T) {
	need(t, "node", "nginx")
	b, _ := serveWeb(t)
	r := run(t, nil, "node", "-e", nodeClient, "--", portOf(b.addr["public"]), b.pki.internal.file, b.pki.alice.file, b.pki.alice.keyFile)
	if r.code != 0 {
		t.Fatalf("node: %s", r)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(r.out), &got); err != nil {
		t.Fatalf("%v: %s", err, r)
	}
	const good = "[200 15000 false 200 true 201 true]"
	for what, want := range map[string]string{"TLSv1.2": good, "TLSv1.3": good,
		"missing TLSv1.2": "EPROTO", "missing TLSv1.3": "ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED"} {
		if text := fmt.Sprint(got[what]); text != want {
			t.Errorf("%s: %s; want %s", what, text, want)
		}
	}
}
