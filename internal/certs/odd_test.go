package certs

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	gopkcs12 "software.sslmate.com/src/go-pkcs12"
)

// odd is an input as users bring it. Without want it is accepted: with chain certificates, and the warnings.
type odd struct {
	name  string
	src   Source
	want  error
	says  string // part of the error
	chain int
	warns []string
}

// run checks, beside what the case says, what every problem must be: complete, bounded, on one line, and silent about keys.
func (o odd) run(t *testing.T, secrets ...[]byte) {
	t.Helper()
	start := time.Now()
	pair, warnings, err := Parse(o.src)
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
	if (pair == nil) == (err == nil) {
		t.Fatalf("neither or both: %v, %v", pair, err)
	}
	for _, text := range append(slices.Clone(warnings), fmt.Sprint(err)) {
		if len(text) > 1200 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("not fit for a log line: %q", text)
		}
		for _, s := range secrets {
			line := base64.StdEncoding.EncodeToString(s)
			for i := 40; i+8 < len(line); i++ { // what comes before is the same in all keys
				if strings.Contains(text, line[i:i+8]) {
					t.Fatalf("shows a part of the key: %q", text)
				}
			}
		}
	}
	if o.want == nil {
		if err != nil {
			t.Fatal(err)
		}
		if len(pair.Certificate) != max(o.chain, 1) || !slices.EqualFunc(warnings, o.warns, strings.Contains) {
			t.Errorf("%d certificates, warnings %q; want %d, %q", len(pair.Certificate), warnings, max(o.chain, 1), o.warns)
		}
		return
	}
	var p *Problem
	if !errors.As(err, &p) || !errors.Is(err, o.want) || !strings.Contains(err.Error(), o.says) {
		t.Fatalf("got %v (%v)\nwant %v with %q", err, errors.Unwrap(err), o.want, o.says)
	}
	if p.Role == "" || p.Expected == "" || p.Found == "" || !strings.Contains(p.Next, "openssl") {
		t.Errorf("incomplete: %#v", p)
	}
}

func armor(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func utf16Text(text []byte, big, bom bool) (out []byte) {
	s := string(text)
	if bom {
		s = mark + s
	}
	for _, u := range utf16.Encode([]rune(s)) {
		if big {
			out = append(out, byte(u>>8), byte(u))
		} else {
			out = append(out, byte(u), byte(u>>8))
		}
	}
	return out
}

func replace(text []byte, old, new string) []byte {
	return bytes.ReplaceAll(text, []byte(old), []byte(new))
}

func wrapAt(text []byte, width int) []byte {
	block, _ := pem.Decode(text)
	line := base64.StdEncoding.EncodeToString(block.Bytes)
	out := "-----BEGIN " + block.Type + "-----\n"
	for len(line) > width {
		out, line = out+line[:width]+"\n", line[width:]
	}
	return []byte(out + line + "\n-----END " + block.Type + "-----\n")
}

// signedData makes the PKCS#7 of certificates, and of what else is asked for.
func signedData(content, crls, signers []byte, certs ...*node) []byte {
	var b cryptobyte.Builder
	seq := cbasn1.SEQUENCE
	b.AddASN1(seq, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(explicit, func(b *cryptobyte.Builder) {
			b.AddASN1(seq, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
				b.AddASN1(seq, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData); b.AddBytes(content) })
				b.AddASN1(explicit, func(b *cryptobyte.Builder) {
					for _, c := range certs {
						b.AddBytes(c.Raw)
					}
				})
				if crls != nil {
					b.AddASN1(explicit|1, func(b *cryptobyte.Builder) { b.AddBytes(crls) })
				}
				b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(signers) })
			})
		})
	})
	return b.BytesOrPanic()
}

// pbes2 encrypts for PKCS #8 and #12; the count is written, and used where it can be.
func pbes2(count int64, password string, plain []byte, edit func(prf *cryptobyte.Builder)) (alg, sealed []byte) {
	salt, iv := bytes.Repeat([]byte{7}, 16), bytes.Repeat([]byte{9}, 16)
	key, _ := pbkdf2.Key(sha256.New, password, salt, int(min(count, 1000)), 32)
	pad := 16 - len(plain)%16
	plain = append(slices.Clone(plain), bytes.Repeat([]byte{byte(pad)}, pad)...)
	block, _ := aes.NewCipher(key)
	sealed = make([]byte, len(plain))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(sealed, plain)
	var b cryptobyte.Builder
	seq := cbasn1.SEQUENCE
	b.AddASN1(seq, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidPBES2)
		b.AddASN1(seq, func(b *cryptobyte.Builder) {
			b.AddASN1(seq, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidPBKDF2)
				b.AddASN1(seq, func(b *cryptobyte.Builder) {
					b.AddASN1OctetString(salt)
					b.AddASN1Int64(count)
					if edit != nil {
						edit(b)
						return
					}
					b.AddASN1(seq, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidHMAC256) })
				})
			})
			b.AddASN1(seq, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42})
				b.AddASN1OctetString(iv)
			})
		})
	})
	return b.BytesOrPanic(), sealed
}

func shrouded(count int64, password string, key []byte, edit func(*cryptobyte.Builder)) []byte {
	alg, sealed := pbes2(count, password, key, edit)
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(alg); b.AddASN1OctetString(sealed) })
	return b.BytesOrPanic()
}

// scryptKey makes what looks like a key encrypted by way of scrypt.
func scryptKey(n, r, p int64) []byte {
	var b cryptobyte.Builder
	seq := cbasn1.SEQUENCE
	b.AddASN1(seq, func(b *cryptobyte.Builder) {
		b.AddASN1(seq, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidPBES2)
			b.AddASN1(seq, func(b *cryptobyte.Builder) {
				b.AddASN1(seq, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidScrypt)
					b.AddASN1(seq, func(b *cryptobyte.Builder) {
						b.AddASN1OctetString(make([]byte, 8))
						for _, v := range []int64{n, r, p} {
							b.AddASN1Int64(v)
						}
					})
				})
				b.AddASN1(seq, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42})
					b.AddASN1OctetString(make([]byte, 16))
				})
			})
		})
		b.AddASN1OctetString(make([]byte, 64))
	})
	return armor("ENCRYPTED PRIVATE KEY", b.BytesOrPanic())
}

func bag(kind asn1.ObjectIdentifier, value []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(kind)
			b.AddASN1(explicit, func(b *cryptobyte.Builder) { b.AddBytes(value) })
		})
	})
	return b.BytesOrPanic()
}

// joined makes one SafeContents of several.
func joined(all ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, der := range all {
			in := cryptobyte.String(der)
			in.ReadASN1(&in, cbasn1.SEQUENCE)
			b.AddBytes(in)
		}
	})
	return b.BytesOrPanic()
}

// safe makes an item of a PKCS#12 file, encrypted if count is not 0.
func safe(count int64, password string, bags []byte) cryptobyte.String {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if count == 0 {
			b.AddASN1ObjectIdentifier(oidData)
			b.AddASN1(explicit, func(b *cryptobyte.Builder) { b.AddASN1OctetString(bags) })
			return
		}
		alg, sealed := pbes2(count, password, bags, nil)
		b.AddASN1ObjectIdentifier(oidEncryptedData)
		b.AddASN1(explicit, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(0)
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidData)
					b.AddBytes(alg)
					b.AddASN1(explicit&^0x20, func(b *cryptobyte.Builder) { b.AddBytes(sealed) })
				})
			})
		})
	})
	return b.BytesOrPanic()
}

func certBag(c *node) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 22, 1})
		b.AddASN1(explicit, func(b *cryptobyte.Builder) { b.AddASN1OctetString(c.Raw) })
	})
	return b.BytesOrPanic()
}

// pfx makes a PKCS#12 file with a good MAC of two items, in this order.
func pfx(t *testing.T, password string, first, second cryptobyte.String) []byte {
	t.Helper()
	der, err := exchanged(&contents{items: []cryptobyte.String{first, second}}, password)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestOddFiles(t *testing.T) {
	root := issue(t, nil, ecKey(elliptic.P256()), ca("root"))
	inter := issue(t, root, ecKey(elliptic.P256()), ca("inter"))
	other := issue(t, nil, ecKey(elliptic.P256()), ca("other"))
	leaf := issue(t, inter, ecKey(elliptic.P256()), leafFor("a.test"))
	public := issue(t, inter, leaf.key, func(c *x509.Certificate) {
		leafFor("b.test")(c)
		c.IssuingCertificateURL = []string{"http://ca.test/inter.cer"}
	})
	big := issue(t, inter, rsaTestKey(), leafFor("r.test"))

	cert, chain, key := certPEM(leaf), certPEM(leaf, inter), keyPEM(leaf.key)
	pkcs8DER, _ := x509.MarshalPKCS8PrivateKey(leaf.key)
	sec1, _ := x509.MarshalECPrivateKey(leaf.key.(*ecdsa.PrivateKey))
	spki, _ := x509.MarshalPKIXPublicKey(leaf.key.Public())
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a.test"}}, leaf.key)
	if err != nil {
		t.Fatal(err)
	}
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: leaf.SerialNumber, ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)},
		&x509.Certificate{Raw: inter.Raw, RawSubject: inter.RawSubject, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}, PublicKey: inter.PublicKey}, inter.key)
	if err != nil {
		t.Fatal(err)
	}
	p12, err := gopkcs12.Modern.Encode(leaf.key, leaf.Certificate, []*x509.Certificate{root.Certificate, inter.Certificate}, "secret")
	if err != nil {
		t.Fatal(err)
	}
	body := bytes.SplitAfter(cert, []byte("\n"))
	lines := bytes.SplitAfter(key, []byte("\n"))
	lock := func(count int64, edit func(*cryptobyte.Builder)) []byte {
		return armor("ENCRYPTED PRIVATE KEY", shrouded(count, "secret", pkcs8DER, edit))
	}
	sha := func(n int) func(b *cryptobyte.Builder) {
		return func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 2, n}) })
		}
	}
	legacy := armor("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaTestKey().(*rsa.PrivateKey)))
	legacy = replace(legacy, "KEY-----\nM", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: DES-EDE3-CBC,0011223344556677\n\nM")
	secret := []byte("secret")
	jks := append([]byte("\xfe\xed\xfe\xed\x00\x00\x00\x02"), make([]byte, 200)...)
	text := []byte("Certificate:\n    Data:\n        Version: 3 (0x2)\n        Serial Number: 1 (0x1)\n    Signature Algorithm: ecdsa-with-SHA256\n         30:45:02:20\n")
	many := bytes.Repeat(cert, 17)
	goodKey, goodCerts := bag(oidShroudedBag, shrouded(1000, "secret", pkcs8DER, nil)), joined(bag(oidCertBag, certBag(leaf)), bag(oidCertBag, certBag(inter)))
	bombKey := bag(oidShroudedBag, shrouded(1e9, "secret", pkcs8DER, nil))
	withBomb := joined(goodCerts, bombKey)
	twoKeys := joined(goodKey, goodKey)

	cases := []odd{
		// Shapes of text that are taken.
		{name: "BOM", src: Source{Cert: cat([]byte(mark), cert), Key: cat([]byte(mark), key)}},
		{name: "BOM between joined files", src: Source{Cert: cat([]byte(mark), cert, []byte(mark), certPEM(inter)), Key: key}, chain: 2},
		{name: "CRLF", src: Source{Cert: replace(chain, "\n", "\r\n"), Key: replace(key, "\n", "\r\n")}, chain: 2},
		{name: "CR only", src: Source{Cert: replace(chain, "\n", "\r"), Key: replace(key, "\n", "\r")}, chain: 2},
		{name: "CR CR LF", src: Source{Cert: replace(cert, "\n", "\r\r\n"), Key: key}},
		{name: "trailing blanks", src: Source{Cert: replace(cert, "\n", " \t\n"), Key: replace(key, "\n", "  \n")}},
		{name: "indented, from YAML", src: Source{Cert: cat([]byte("tls.crt: |\n"), replace(cert, "\n", "\n    ")), Key: replace(cat([]byte("    "), key), "\n", "\n    ")}},
		{name: "tabs", src: Source{Cert: replace(cat([]byte("\t"), cert), "\n", "\n\t"), Key: key}},
		{name: "no final newline", src: Source{Cert: bytes.TrimSpace(cert), Key: bytes.TrimSpace(key)}},
		{name: "blank lines inside", src: Source{Cert: replace(cert, "\n", "\n\n"), Key: key}},
		{name: "openssl x509 -text", src: Source{Cert: cat(text, cert), Key: key}},
		{name: "Bag Attributes", src: Source{Cert: cat([]byte("Bag Attributes\n    friendlyName: END of line\nsubject=CN = a.test\n"), cert), Key: cat([]byte("Key Attributes: <No Attributes>\n"), key)}},
		{name: "one long line", src: Source{Cert: wrapAt(cert, 1<<20), Key: wrapAt(key, 1<<20)}},
		{name: "odd width", src: Source{Cert: wrapAt(cert, 61), Key: wrapAt(key, 7)}},
		{name: "X509 CERTIFICATE", src: Source{Cert: replace(cert, "CERTIFICATE", "X509 CERTIFICATE"), Key: key}},
		{name: "EC PARAMETERS before the key", src: Source{Cert: cert, Key: cat(armor("EC PARAMETERS", []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}), armor("EC PRIVATE KEY", sec1))}},
		{name: "key under another key's label", src: Source{Cert: cert, Key: armor("RSA PRIVATE KEY", pkcs8DER)}},
		{name: "SEC 1 as PRIVATE KEY", src: Source{Cert: cert, Key: armor("PRIVATE KEY", sec1)}},
		{name: "public key beside the key", src: Source{Cert: cert, Key: cat(key, armor("PUBLIC KEY", spki))}, warns: []string{"a public key (BEGIN PUBLIC KEY) is not used"}},

		// DER, PKCS#7.
		{name: "DER", src: Source{Cert: leaf.Raw, Key: pkcs8DER}},
		{name: "DER, SEC 1", src: Source{Cert: leaf.Raw, Key: sec1}},
		{name: "DER, RSA in PKCS #1", src: Source{Cert: big.Raw, Key: x509.MarshalPKCS1PrivateKey(rsaTestKey().(*rsa.PrivateKey))}},
		{name: "DER, encrypted", src: Source{Cert: cert, Key: shrouded(1000, "secret", pkcs8DER, nil), Password: secret}},
		{name: "PKCS#7 in any order", src: Source{Cert: signedData(nil, nil, nil, inter, leaf), Key: key}, chain: 2},
		{name: "PKCS#7 in PEM", src: Source{Cert: armor("PKCS7", signedData(nil, nil, nil, root, leaf, inter)), Key: key}, chain: 3, warns: []string{"is the root"}},
		{name: "PKCS#7 as CMS", src: Source{Cert: armor("CMS", signedData(nil, nil, nil, leaf)), Key: key}},
		{name: "PKCS#7 with a stranger", src: Source{Cert: signedData(nil, nil, nil, other, inter, leaf), Key: key}, chain: 2, warns: []string{"1 certificates do not belong"}},
		{name: "two in DER", src: Source{Cert: cat(leaf.Raw, inter.Raw), Key: key}, want: ErrMalformed, says: "certificate file: expected one thing in DER and no more, found"},
		{name: "newline behind DER", src: Source{Cert: cat(leaf.Raw, []byte("\n")), Key: key}, want: ErrMalformed, says: "found 1 bytes behind a certificate"},
		{name: "DER cut off", src: Source{Cert: leaf.Raw[:100], Key: key}, want: ErrMalformed, says: "found DER that is cut off"},
		{name: "PKCS#7 in BER", src: Source{Cert: cat([]byte{0x30, 0x80, 6, 9}, bytes.Repeat([]byte{0}, 90)), Key: key}, want: ErrMalformed, says: "openssl pkcs7 -inform der -in FILE -print_certs"},
		{name: "PKCS#7 that is signed", src: Source{Cert: signedData(nil, nil, []byte{0x30, 0}, leaf), Key: key}, want: ErrMalformed, says: "found a signed message"},
		{name: "PKCS#7 with a message", src: Source{Cert: signedData([]byte{0xa0, 2, 4, 0}, nil, nil, leaf), Key: key}, want: ErrMalformed, says: "found a signed message"},
		{name: "PKCS#7 with lists", src: Source{Cert: signedData(nil, crl, nil, leaf), Key: key}, want: ErrMalformed, says: "found revocation lists beside them"},
		{name: "PKCS#7 that is empty", src: Source{Cert: signedData(nil, nil, nil), Key: key}, want: ErrMalformed, says: "found PKCS#7 without any"},
		{name: "PKCS#7 that is damaged", src: Source{Cert: armor("PKCS7", signedData(nil, nil, nil, leaf)[:60]), Key: key}, want: ErrMalformed, says: "found PKCS#7 that is damaged"},
		{name: "B24/PKCS#7 with another kind", src: Source{Cert: signedData(nil, nil, nil, &node{Certificate: &x509.Certificate{Raw: []byte{0xa3, 0}}}, leaf), Key: key}, want: ErrMalformed, says: "found another kind as number 1"},

		// Text that is not taken.
		{name: "UTF-16 LE", src: Source{Cert: utf16Text(cert, false, true), Key: key}, want: ErrMalformed, says: "found text in UTF-16; convert it: iconv -f UTF-16"},
		{name: "UTF-16 BE", src: Source{Cert: utf16Text(cert, true, true), Key: key}, want: ErrMalformed, says: "text in UTF-16"},
		{name: "UTF-16 without mark", src: Source{Cert: cert, Key: utf16Text(key, false, false)}, want: ErrMalformed, says: "key file: expected PEM (text in ASCII or UTF-8) or DER, found text in UTF-16"},
		{name: "TRUSTED CERTIFICATE", src: Source{Cert: replace(cert, "CERTIFICATE", "TRUSTED CERTIFICATE"), Key: key}, want: ErrNoCertificate, says: "found a TRUSTED CERTIFICATE, which only OpenSSL knows"},
		{name: "HTML", src: Source{Cert: []byte("\n<!DOCTYPE html>\n<html>404"), Key: key}, want: ErrMalformed, says: "found an HTML or XML page"},
		{name: "smart dashes", src: Source{Cert: replace(cert, "-----", "–––––"), Key: key}, want: ErrMalformed, says: "a word processor made dashes"},
		{name: "em dashes", src: Source{Cert: cert, Key: replace(key, "-----", "——-")}, want: ErrMalformed, says: "a word processor made dashes"},
		{name: "smart quotes", src: Source{Cert: cat([]byte("“"), cert), Key: key}, want: ErrMalformed, says: "dashes or quotes"},
		{name: "four dashes", src: Source{Cert: bytes.Replace(cert, []byte("-----BEGIN"), []byte("----BEGIN"), 1), Key: key}, want: ErrMalformed, says: "4 hyphens before and 5 after in place of 5"},
		{name: "six dashes behind", src: Source{Cert: bytes.Replace(cert, []byte("CATE-----\nM"), []byte("CATE------\nM"), 1), Key: key}, want: ErrMalformed, says: "5 hyphens before and 6 after"},
		{name: "no blank", src: Source{Cert: replace(cert, "BEGIN ", "BEGIN"), Key: key}, want: ErrMalformed, says: "a blank is missing"},
		{name: "lower case", src: Source{Cert: replace(cert, "BEGIN CERTIFICATE", "Begin Certificate"), Key: key}, want: ErrMalformed, says: "its words are not those"},
		{name: "all in one line", src: Source{Cert: cert, Key: replace(key, "\n", " ")}, want: ErrMalformed, says: "the line breaks were lost"},
		{name: `\n as two characters`, src: Source{Cert: cert, Key: replace(key, "\n", `\n`)}, want: ErrMalformed, says: `printf '%b'`},
		{name: "quoted in a mail", src: Source{Cert: replace(cat([]byte("> "), cert), "\n", "\n> "), Key: key}, want: ErrMalformed, says: "hyphens before"},
		{name: "stray NUL", src: Source{Cert: replace(cert, "\nM", "\n\x00M"), Key: key}, want: ErrMalformed, says: "block 1 (line 1): line 2: expected text, found a NUL byte at column 1"},
		{name: "NULs at the end", src: Source{Cert: cert, Key: cat(key, make([]byte, 512))}, want: ErrMalformed, says: "never written to its end"},
		{name: "no END", src: Source{Cert: cert, Key: bytes.Join(lines[:len(lines)-2], nil)}, want: ErrMalformed, says: "key file: block 1 (line 1): expected an END line, found that the file ends"},
		{name: "no BEGIN", src: Source{Cert: bytes.Join(body[1:], nil), Key: key}, want: ErrMalformed, says: "base64 outside of a block"},
		{name: "BEGIN twice", src: Source{Cert: cat(body[0], cert), Key: key}, want: ErrMalformed, says: "found a BEGIN line before the block ended"},
		{name: "END of another", src: Source{Cert: replace(cert, "END CERTIFICATE", "END PUBLIC KEY"), Key: key}, want: ErrMalformed, says: "expected END CERTIFICATE, found END PUBLIC KEY"},
		{name: "a line missing", src: Source{Cert: bytes.Join(slices.Delete(slices.Clone(body), 2, 3), nil), Key: key}, want: ErrMalformed, says: "certificate 1 that cannot be parsed"},
		{name: "base64 cut", src: Source{Cert: replace(cert, string(body[2]), string(body[2][:13])+"\n"), Key: key}, want: ErrMalformed, says: "cut or damaged"},
		{name: "odd character", src: Source{Cert: cert, Key: replace(key, "\nM", "\n“M")}, want: ErrMalformed, says: `expected base64, found '“' at column 1`},
		{name: "header in a certificate", src: Source{Cert: replace(cert, "\nM", "\nComment: x\n\nM"), Key: key}, want: ErrMalformed, says: "a text header inside the block"},
		{name: "bare base64", src: Source{Cert: []byte(base64.StdEncoding.EncodeToString(leaf.Raw)), Key: key}, want: ErrMalformed, says: "BEGIN and END lines were lost"},
		{name: "bare base64 of a key", src: Source{Cert: cert, Key: []byte(base64.StdEncoding.EncodeToString(pkcs8DER))}, want: ErrNoKey, says: "found base64 without BEGIN and END lines"},
		{name: "base64 twice, from a Kubernetes secret", src: Source{Cert: cert, Key: []byte(base64.StdEncoding.EncodeToString(key))}, want: ErrNoKey, says: "encoded in base64 once more; decode it: openssl base64 -d -A"},
		{name: "empty", src: Source{Cert: nil, Key: key}, want: ErrNoCertificate, says: "an empty file"},
		{name: "blank", src: Source{Cert: cert, Key: []byte(" \r\n")}, want: ErrNoKey, says: "key file: expected a private key (-----BEGIN PRIVATE KEY-----), found none: an empty file"},
		{name: "JSON", src: Source{Cert: cert, Key: []byte(`{"kty":"EC","crv":"P-256"}`)}, want: ErrNoKey, says: "none, but JSON"},
		{name: "a name of a file", src: Source{Cert: []byte("/etc/ssl/api.pem\n"), Key: key}, want: ErrNoCertificate, says: "none, but other text"},
		{name: "ZIP", src: Source{Cert: []byte("PK\x03\x04......"), Key: key}, want: ErrMalformed, says: "a compressed archive"},
		{name: "JKS", src: Source{Cert: jks, Key: key}, want: ErrMalformed, says: "keytool -importkeystore"},
		{name: "F21/too large", src: Source{Cert: bytes.Repeat([]byte("#"), 1<<20+1), Key: key}, want: ErrTooLarge, says: "at most 1 MiB"},

		// The wrong thing.
		{name: "H03/swapped", src: Source{Cert: key, Key: cert}, want: ErrSwapped, says: "they are swapped; exchange the two names"},
		{name: "swapped in DER", src: Source{Cert: pkcs8DER, Key: leaf.Raw}, want: ErrSwapped, says: "they are swapped"},
		{name: "request in place of certificate", src: Source{Cert: armor("CERTIFICATE REQUEST", csr), Key: key}, want: ErrNoCertificate, says: "found a certificate request (CSR)"},
		{name: "request, old label", src: Source{Cert: armor("NEW CERTIFICATE REQUEST", csr), Key: key}, want: ErrNoCertificate, says: "send it to the CA"},
		{name: "request in DER", src: Source{Cert: csr, Key: key}, want: ErrNoCertificate, says: "found a certificate request (CSR) in DER"},
		{name: "list in DER", src: Source{Cert: crl, Key: key}, want: ErrNoCertificate, says: "found a revocation list (X509 CRL) in DER"},
		{name: "public key in place of key", src: Source{Cert: cert, Key: armor("PUBLIC KEY", spki)}, want: ErrNoKey, says: "found a public key (BEGIN PUBLIC KEY); use the private key that was made with it"},
		{name: "public key in DER", src: Source{Cert: cert, Key: spki}, want: ErrNoKey, says: "a public key in DER"},
		{name: "request in place of key", src: Source{Cert: cert, Key: armor("CERTIFICATE REQUEST", csr)}, want: ErrNoKey, says: "openssl req -in FILE -noout -pubkey"},
		{name: "OpenSSH key", src: Source{Cert: cert, Key: armor("OPENSSH PRIVATE KEY", []byte("openssh-key-v1\x00"))}, want: ErrKeyUnsupported, says: "ssh-keygen -p -m PKCS8 -f COPY"},
		{name: "SSH public key", src: Source{Cert: cert, Key: []byte("ssh-ed25519 AAAAC3Nza me@host\n")}, want: ErrNoKey, says: "an SSH public key"},
		{name: "PuTTY key", src: Source{Cert: cert, Key: []byte("PuTTY-User-Key-File-3: ssh-rsa\n")}, want: ErrNoKey, says: "a PuTTY key"},
		{name: "EC PARAMETERS alone", src: Source{Cert: cert, Key: armor("EC PARAMETERS", []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7})}, want: ErrNoKey, says: "parameters without a key"},
		{name: "DSA key", src: Source{Cert: cert, Key: armor("DSA PRIVATE KEY", []byte{0x30, 0})}, want: ErrKeyUnsupported, says: "a DSA private key"},
		{name: "TPM key", src: Source{Cert: cert, Key: armor("TSS2 PRIVATE KEY", []byte{0x30, 0})}, want: ErrKeyUnsupported, says: "BEGIN TSS2 PRIVATE KEY"},
		{name: "huge key", src: Source{Cert: cert, Key: armor("RSA PRIVATE KEY", make([]byte, 1<<15))}, want: ErrKeyUnsupported, says: "at most 16 KiB"},
		{name: "PKCS#12 as certificate", src: Source{Cert: p12, Key: key}, want: ErrNoCertificate, says: "what looks like a PKCS#12 file; give it as pkcs12 in place of cert and key"},
		{name: "PKCS#12 as key", src: Source{Cert: cert, Key: p12}, want: ErrNoKey, says: "openssl pkcs12 -in FILE -nocerts -nodes"},
		{name: "key in the certificate file", src: Source{Cert: cat(cert, key), Key: key}, want: ErrKeyInCertFile, says: "certificate file: block 2 (line"},
		{name: "certificate in the key file", src: Source{Cert: cert, Key: cat(key, chain)}, want: ErrCertInKeyFile, says: "found 2 certificates"},
		{name: "label of a stranger", src: Source{Cert: armor("MY SECRET THING", []byte{1}), Key: key}, want: ErrNoCertificate, says: "found BEGIN MY SECRET THING"},

		// Chains.
		{name: "root first", src: Source{Cert: certPEM(root, inter, leaf), Key: key}, want: ErrChain, says: `found "CN=root" first and the leaf "CN=a.test" as number 3; write them in the order 3, 2, 1`},
		{name: "leaf first, then mixed", src: Source{Cert: certPEM(leaf, root, inter), Key: key}, want: ErrChain, says: "write them in the order 1, 3, 2"},
		{name: "with a stranger", src: Source{Cert: certPEM(leaf, inter, other), Key: key}, want: ErrChain, says: `found "CN=other" as number 3`},
		{name: "leaf twice", src: Source{Cert: cat(cert, chain), Key: key}, chain: 2, warns: []string{"is the same as certificate 1"}},
		{name: "with root", src: Source{Cert: certPEM(leaf, inter, root), Key: key}, chain: 3, warns: []string{`"CN=root" is the root`}},
		{name: "intermediate missing", src: Source{Cert: certPEM(public), Key: key}, warns: []string{`the issuer "CN=inter" is missing`}},
		{name: "a CA bundle", src: Source{Cert: many, Key: key}, want: ErrChain, says: "found 17 certificates (a CA bundle, perhaps)"},
		{name: "H03/another key", src: Source{Cert: chain, Key: keyPEM(inter.key)}, want: ErrKeyMismatch, says: "belongs to certificate 2"},

		// Passwords.
		{name: "encrypted", src: Source{Cert: cert, Key: lock(1000, nil), Password: secret}},
		{name: "password with LF", src: Source{Cert: cert, Key: lock(1000, nil), Password: []byte("secret\n")}},
		{name: "password with CRLF", src: Source{Cert: cert, Key: lock(1000, nil), Password: []byte("secret\r\n")}},
		{name: "password with two LF", src: Source{Cert: cert, Key: lock(1000, nil), Password: []byte("secret\n\n")}, want: ErrPassword, says: "it has more than one line"},
		{name: "password with BOM", src: Source{Cert: cert, Key: lock(1000, nil), Password: []byte(mark + "secret")}, want: ErrPassword, says: "byte order mark"},
		{name: "password in UTF-16", src: Source{Cert: cert, Key: lock(1000, nil), Password: utf16Text(secret, false, false)}, want: ErrPassword, says: "UTF-16"},
		{name: "password with a blank", src: Source{Cert: cert, Key: lock(1000, nil), Password: []byte("secret ")}, want: ErrPassword, says: "blanks"},
		{name: "no password", src: Source{Cert: cert, Key: lock(1000, nil)}, want: ErrKeyEncrypted, says: "set password: {file: PATH} or password: {env: NAME}"},
		{name: "empty password", src: Source{Cert: cert, Key: lock(1000, nil), Password: []byte("\n")}, want: ErrKeyEncrypted, says: "found an empty one"},
		{name: "wrong password", src: Source{Cert: cert, Key: lock(1000, nil), Password: []byte("Secret")}, want: ErrPassword, says: "key file: expected the password of the private key, found another one, or a damaged file; try it: openssl pkey"},
		{name: "long password", src: Source{Cert: cert, Key: lock(1000, nil), Password: make([]byte, 5000)}, want: ErrPassword, says: "at most 1024 bytes"},
		{name: "password without use", src: Source{Cert: cert, Key: key, Password: secret}, warns: []string{"the key is not encrypted"}},
		{name: "encrypted under another label", src: Source{Cert: cert, Key: replace(lock(1000, nil), "ENCRYPTED ", ""), Password: secret}},
		{name: "encrypted, old form", src: Source{Cert: certPEM(big), Key: legacy, Password: secret}, want: ErrKeyEncrypted, says: "Proc-Type: 4,ENCRYPTED"},
		{name: "G32/bomb", src: Source{Cert: cert, Key: lock(1e9, nil), Password: secret}, want: ErrTooCostly, says: "expected at most 1000000 iterations between password and key, found 1000000000"},
		{name: "G32/bomb of bombs", src: Source{Cert: cert, Key: lock(1<<62-1, nil), Password: secret}, want: ErrTooCostly, says: "iterations"},
		{name: "G32/scrypt in time", src: Source{Cert: cert, Key: scryptKey(1<<30, 8, 1), Password: secret}, want: ErrTooCostly, says: "scrypt of a larger cost"},
		{name: "G32/scrypt in memory", src: Source{Cert: cert, Key: scryptKey(2, 1<<20, 1), Password: secret}, want: ErrTooCostly, says: "scrypt of a larger cost"},
		{name: "G32/scrypt beyond numbers", src: Source{Cert: cert, Key: scryptKey(1<<62, 1<<62, 1<<62), Password: secret}, want: ErrTooCostly, says: "scrypt of a larger cost"},
		{name: "SHA-512", src: Source{Cert: cert, Key: lock(1000, sha(11)), Password: secret}, want: ErrKeyUnsupported, says: "found PBKDF2 with SHA-512; convert it: openssl pkcs8 -topk8"},
		{name: "unknown hash", src: Source{Cert: cert, Key: lock(1000, sha(99)), Password: secret}, want: ErrKeyUnsupported, says: "1.2.840.113549.2.99"},
		{name: "key length, as Java writes", src: Source{Cert: cert, Key: lock(1000, func(b *cryptobyte.Builder) { b.AddASN1Int64(32); sha(9)(b) }), Password: secret}, want: ErrKeyUnsupported, says: "a key length written out"},
		{name: "encrypted, garbage", src: Source{Cert: cert, Key: armor("ENCRYPTED PRIVATE KEY", []byte{0x30, 3, 2, 1, 0}), Password: secret}, want: ErrMalformed, says: "an encrypted key (PKCS #8)"},

		// PKCS#12.
		{name: "PKCS#12", src: Source{PKCS12: p12, Password: secret}, chain: 3, warns: []string{"is the root"}},
		{name: "PKCS#12 in PEM", src: Source{PKCS12: armor("PKCS12", p12), Password: []byte("secret\n")}, chain: 3, warns: []string{"is the root"}},
		{name: "PKCS#12, parts in this order", src: Source{PKCS12: pfx(t, "secret", safe(1000, "secret", goodCerts), safe(0, "", goodKey)), Password: secret}, chain: 2},
		{name: "PKCS#12, parts in that order", src: Source{PKCS12: pfx(t, "secret", safe(0, "", goodKey), safe(1000, "secret", goodCerts)), Password: secret}, chain: 2},
		{name: "PKCS#12, wrong password", src: Source{PKCS12: p12, Password: []byte("x")}, want: ErrPassword, says: "PKCS#12 file: expected the password of the private key, found another one"},
		{name: "PKCS#12, wrong password inside", src: Source{PKCS12: pfx(t, "x", safe(1000, "secret", goodCerts), safe(0, "", goodKey)), Password: []byte("y")}, want: ErrPassword, says: "found another one"},
		{name: "PKCS#12, no password", src: Source{PKCS12: p12}, want: ErrKeyEncrypted, says: "set password: {file: PATH}"},
		{name: "PKCS#12, emoji", src: Source{PKCS12: p12, Password: []byte("🔑")}, want: ErrPassword, says: "up to U+FFFF"},
		{name: "PKCS#12, Latin-1", src: Source{PKCS12: p12, Password: []byte("caf\xe9")}, want: ErrPassword, says: "UTF-8"},
		{name: "PKCS#12, changed", src: Source{PKCS12: replace(p12, string(p12[len(p12)-20:]), strings.Repeat("x", 20)), Password: secret}, want: ErrMalformed, says: "damaged"},
		{name: "PKCS#12, cut off", src: Source{PKCS12: p12[:len(p12)/2], Password: secret}, want: ErrMalformed, says: "DER that is cut off"},
		{name: "PKCS#12 and PEM", src: Source{PKCS12: p12, Cert: cert, Password: secret}, want: ErrSource, says: "found both"},
		{name: "PEM as PKCS#12", src: Source{PKCS12: chain, Password: secret}, want: ErrMalformed, says: "openssl pkcs12 -export -in CERT -inkey KEY"},
		{name: "empty PKCS#12", src: Source{PKCS12: []byte{}, Password: secret}, want: ErrNoCertificate, says: "an empty file"},
		{name: "PKCS#12 without key", src: Source{PKCS12: pfx(t, "secret", safe(1000, "secret", goodCerts), safe(0, "", goodCerts)), Password: secret}, want: ErrNoKey, says: "a trust store, perhaps"},
		{name: "PKCS#12 with two keys", src: Source{PKCS12: pfx(t, "secret", safe(1000, "secret", goodCerts), safe(0, "", twoKeys)), Password: secret}, want: ErrNoKey, says: "found 2"},
		{name: "G32/PKCS#12 key of another certificate", src: Source{PKCS12: func() []byte {
			der, _ := gopkcs12.Modern.Encode(other.key, leaf.Certificate, nil, "secret")
			return der
		}(), Password: secret}, want: ErrKeyMismatch, says: "found another ECDSA key: the private key does not belong"},
		{name: "G32/PKCS#12 bomb at the key", src: Source{PKCS12: pfx(t, "secret", safe(1000, "secret", goodCerts), safe(0, "", bombKey)), Password: secret}, want: ErrTooCostly, says: "found 1000000000"},
		{name: "G32/PKCS#12 bomb at the certificates", src: Source{PKCS12: pfx(t, "secret", safe(1e9, "secret", goodCerts), safe(0, "", goodKey)), Password: secret}, want: ErrTooCostly, says: "found 1000000000"},
		{name: "G32/PKCS#12 bomb among the certificates", src: Source{PKCS12: pfx(t, "secret", safe(1000, "secret", withBomb), safe(0, "", goodKey)), Password: secret}, want: ErrMalformed, says: "exactly one key bag"},
	}
	for _, o := range cases {
		t.Run(o.name, func(t *testing.T) { o.run(t, pkcs8DER, sec1) })
	}
	if len(cases) < 100 {
		t.Error("the table lost cases")
	}
	t.Run("G32/MAC bomb", func(t *testing.T) {
		s, err := survey(p12)
		if err != nil || len(s.items) != 2 {
			t.Fatal(err)
		}
		quickly(t, time.Second, func() {
			for _, count := range []byte{0x3b, 0x7f} { // 1e9 and more, as the INTEGER of the MAC
				bomb := macBomb(t, s, []byte{count, 0x9a, 0xca, 0x00})
				odd{src: Source{PKCS12: bomb, Password: secret}, want: ErrTooCostly, says: "at most 1000000 iterations"}.run(t)
			}
		})
	})
}

// quickly fails unless f takes no longer than most, once in three times: a machine that does something else meanwhile does
// not do so every time.
func quickly(t *testing.T, most time.Duration, f func()) {
	t.Helper()
	var took time.Duration
	for range 3 {
		start := time.Now()
		if f(); time.Since(start) <= most {
			return
		}
		took = time.Since(start)
	}
	t.Errorf("took %v", took)
}

// macBomb makes a PKCS#12 file whose MAC asks for many iterations.
func macBomb(t *testing.T, s *contents, count []byte) []byte {
	t.Helper()
	var b cryptobyte.Builder
	seq := cbasn1.SEQUENCE
	b.AddASN1(seq, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(3)
		b.AddBytes(safe(0, "", slices.Concat([]byte(s.items[0])))) // any content will do
		b.AddASN1(seq, func(b *cryptobyte.Builder) {
			b.AddASN1(seq, func(b *cryptobyte.Builder) {
				b.AddASN1(seq, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}) })
				b.AddASN1OctetString(make([]byte, 20))
			})
			b.AddASN1OctetString(make([]byte, 8))
			b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(count) })
		})
	})
	return b.BytesOrPanic()
}

// One answer to a wrong password, wherever it is noticed.
func TestG32NoOracle(t *testing.T) {
	leaf := issue(t, nil, ecKey(elliptic.P256()), leafFor("a.test"))
	der, _ := x509.MarshalPKCS8PrivateKey(leaf.key)
	locked := shrouded(1000, "secret", der, nil)
	seen := map[string]int{}
	for i := range 600 { // one in 256 has the padding right
		_, _, err := Parse(Source{Cert: leaf.Raw, Key: locked, Password: fmt.Append(nil, i)})
		if !errors.Is(err, ErrPassword) {
			t.Fatal(err)
		}
		seen[err.Error()]++
	}
	if len(seen) != 1 {
		t.Errorf("%d answers: %v", len(seen), seen)
	}
}

func TestF21Linear(t *testing.T) {
	leaf := issue(t, nil, ecKey(elliptic.P256()), leafFor("a.test"))
	key := keyPEM(leaf.key)
	for name, cert := range map[string]string{
		"begins":     strings.Repeat("-----BEGIN \n", 80_000),
		"one line":   strings.Repeat("-", 1<<20),
		"words":      strings.Repeat("END BEGIN ", 100_000),
		"cr":         strings.Repeat("\r", 1<<20),
		"nested DER": strings.Repeat("\x30\x80", 1<<19),
		"nested PEM": string(armor("PKCS7", bytes.Repeat([]byte{0x30, 0x80}, 300_000))),
		"blocks":     strings.Repeat("-----BEGIN A-----\nAA==\n-----END A-----\n", 25_000),
		"chain":      strings.Repeat(string(certPEM(leaf)), 1000),
	} {
		t.Run(name, func(t *testing.T) {
			quickly(t, 2*time.Second, func() {
				if _, _, err := Parse(Source{Cert: []byte(cert), Key: key}); err == nil || len(err.Error()) > 1200 {
					t.Error(err)
				}
			})
		})
	}
}

// openssl runs the program in dir.
func openssl(t *testing.T, dir, args string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", args)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", args, err, out)
	}
}

// What OpenSSL writes is taken as it is, or after what the problem advises.
func TestOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("skipped: the program openssl is not installed")
	}
	dir := t.TempDir()
	root := issue(t, nil, ecKey(elliptic.P256()), ca("root"))
	inter := issue(t, root, ecKey(elliptic.P256()), ca("inter"))
	leaf := issue(t, inter, ecKey(elliptic.P256()), leafFor("a.test"))
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) []byte {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	cert, key := certPEM(leaf, inter), keyPEM(leaf.key)
	write("cert.pem", cert)
	write("inter.pem", certPEM(inter))
	write("key.pem", key)
	der, _ := x509.MarshalPKCS8PrivateKey(leaf.key)
	legacy := exec.Command("openssl", "list", "-providers", "-provider", "legacy").Run() == nil
	export := "openssl pkcs12 -export -in cert.pem -inkey key.pem -out p12 "
	for _, c := range []struct {
		name, make string
		p12        bool
		password   string
		want       error
		says, fix  string // how the advice goes; the result is in new
		warns      []string
	}{
		{name: "pkcs8", make: "openssl pkcs8 -topk8 -in key.pem -out key -passout pass:secret", password: "secret"},
		{name: "pkcs8 3DES", make: "openssl pkcs8 -topk8 -v2 des3 -in key.pem -out key -passout pass:secret", password: "secret"},
		{name: "pkcs8 SHA-1", make: "openssl pkcs8 -topk8 -v2prf hmacWithSHA1 -in key.pem -out key -passout pass:secret", password: "secret"},
		{name: "pkcs8 scrypt", make: "openssl pkcs8 -topk8 -scrypt -in key.pem -out key -passout pass:secret", password: "secret"},
		{name: "pkcs8 DER", make: "openssl pkcs8 -topk8 -outform der -in key.pem -out key -passout pass:secret", password: "secret"},
		{name: "pkcs8 UTF-8", make: "openssl pkcs8 -topk8 -in key.pem -out key -passout pass:zażółć🔑", password: "zażółć🔑"},
		{name: "pkey aes", make: "openssl pkey -aes128 -in key.pem -out key -passout pass:secret", password: "secret"},
		{name: "pkcs8 SHA-512", make: "openssl pkcs8 -topk8 -v2prf hmacWithSHA512 -in key.pem -out key -passout pass:secret", password: "secret",
			want: ErrKeyUnsupported, says: "SHA-512", fix: "openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -in key -out new -passin pass:secret -passout pass:secret"},
		{name: "pkcs8 of PKCS#12", make: "openssl pkcs8 -topk8 -v1 PBE-SHA1-3DES -in key.pem -out key -passout pass:secret", password: "secret",
			want: ErrKeyUnsupported, says: "the encryption of PKCS#12", fix: "openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -in key -out new -passin pass:secret -passout pass:secret"},
		{name: "ec -aes256, the old way", make: "openssl ec -aes256 -in key.pem -out key -passout pass:secret", password: "secret",
			want: ErrKeyEncrypted, says: "Proc-Type", fix: "openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -in key -out new -passin pass:secret -passout pass:secret"},
		{name: "ec, explicit parameters", make: "openssl ec -in key.pem -param_enc explicit -out key",
			want: ErrMalformed, says: "-param_enc named_curve", fix: "openssl ec -in key -param_enc named_curve -out new"},
		{name: "ec", make: "(openssl ecparam -name prime256v1; openssl ec -in key.pem) > key"},

		{name: "pkcs12", make: export + "-passout pass:secret", p12: true, password: "secret"},
		{name: "pkcs12 with order", make: export + "-passout pass:secret -certfile inter.pem", p12: true, password: "secret", warns: []string{"is the same"}},
		{name: "pkcs12 3DES", make: export + "-passout pass:secret -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1", p12: true, password: "secret", warns: []string{"outdated"}},
		{name: "pkcs12 RC2", make: export + "-passout pass:secret -legacy", p12: true, password: "secret", warns: []string{"outdated"}},
		{name: "pkcs12 SHA-512", make: export + "-passout pass:secret -macalg sha512", p12: true, password: "secret"},
		{name: "pkcs12 iterations", make: export + "-passout pass:secret -iter 100000", p12: true, password: "secret"},
		{name: "pkcs12 empty password", make: export + "-passout pass:", p12: true},
		{name: "pkcs12 nothing encrypted", make: export + "-passout pass: -keypbe NONE -certpbe NONE -nomac", p12: true},
		{name: "pkcs12 nothing encrypted, password", make: export + "-passout pass: -keypbe NONE -certpbe NONE -nomac", p12: true, password: "secret", warns: []string{"not encrypted"}},
		{name: "pkcs12 plain certificates", make: export + "-passout pass:secret -certpbe NONE", p12: true, password: "secret"},
		{name: "pkcs12 without MAC", make: export + "-passout pass:secret -nomac", p12: true, password: "secret", want: ErrMalformed, says: "a MAC",
			fix: "openssl pkcs12 -in p12 -nodes -out pem -passin pass:secret -nomacver && openssl pkcs12 -export -in pem -out new -passout pass:secret"},
		{name: "pkcs12 in PBES2 with 3DES", make: export + "-passout pass:secret -keypbe des-ede3-cbc", p12: true, password: "secret", want: ErrKeyUnsupported, says: "3DES in PBES2",
			fix: "openssl pkcs12 -in p12 -nodes -out pem -passin pass:secret && openssl pkcs12 -export -in pem -out new -passout pass:secret"},
		{name: "pkcs12 without key", make: "openssl pkcs12 -export -nokeys -in cert.pem -out p12 -passout pass:secret", p12: true, password: "secret", want: ErrNoKey, says: "a trust store, perhaps"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.Contains(c.make, "-legacy") && !legacy {
				t.Skip("skipped: openssl has no legacy provider")
			}
			openssl(t, dir, c.make)
			source := func(file string) Source {
				s := Source{Cert: cert, Key: read(file)}
				if c.p12 {
					s = Source{PKCS12: read(file)}
				}
				if c.password != "" {
					s.Password = []byte(c.password + "\n")
				}
				return s
			}
			file := "key"
			if c.p12 {
				file = "p12"
			}
			odd{src: source(file), want: c.want, says: c.says, chain: 2, warns: c.warns}.run(t, der)
			if c.fix != "" {
				openssl(t, dir, c.fix)
				odd{src: source("new"), chain: 2}.run(t, der)
			}
		})
	}
	t.Run("certificates", func(t *testing.T) {
		leafPEM := certPEM(leaf)
		write("leaf.pem", leafPEM)
		for name, c := range map[string]struct {
			make, says, fix string
			chain           int
		}{
			"p7b":         {make: "openssl crl2pkcs7 -nocrl -certfile cert.pem -out c", chain: 2},
			"p7b DER":     {make: "openssl crl2pkcs7 -nocrl -certfile cert.pem -outform der -out c", chain: 2},
			"p7b printed": {make: "openssl crl2pkcs7 -nocrl -certfile cert.pem | openssl pkcs7 -print_certs -text -out c", chain: 2},
			"text":        {make: "openssl x509 -in leaf.pem -text -out c"},
			"DER":         {make: "openssl x509 -in leaf.pem -outform der -out c"},
			"trusted":     {make: "openssl x509 -in leaf.pem -trustout -addtrust clientAuth -out c", says: "TRUSTED", fix: "openssl x509 -in c -out new"},
			"CMS":         {make: "openssl cms -sign -in leaf.pem -signer leaf.pem -inkey key.pem -outform pem -nodetach -out c", says: "signed message", fix: "openssl cms -cmsout -inform pem -in c -outform der | openssl pkcs7 -inform der -print_certs -out new"},
			"with key":    {make: "cat leaf.pem key.pem > c", says: "a private key", fix: "openssl x509 -in c -out new"},
			"secret":      {make: "openssl base64 -A -in leaf.pem -out c", says: "once more", fix: "openssl base64 -d -A -in c -out new"},
			"two in DER":  {make: "openssl x509 -in leaf.pem -outform der -out c; cat c c > d; mv d c", says: "bytes behind", fix: "openssl x509 -inform der -in c -out new"},
			"UTF-16":      {make: "iconv -f UTF-8 -t UTF-16 leaf.pem > c", says: "iconv -f UTF-16 -t UTF-8", fix: "iconv -f UTF-16 -t UTF-8 c > new"},
			"backslashes": {make: `awk '{printf "%s\\n", $0}' leaf.pem > c`, says: "printf '%b'", fix: `printf '%b' "$(cat c)" > new`},
		} {
			t.Run(name, func(t *testing.T) {
				openssl(t, dir, c.make)
				_, _, err := Parse(Source{Cert: read("c"), Key: key})
				if c.says == "" {
					odd{src: Source{Cert: read("c"), Key: key}, chain: c.chain}.run(t, der)
					return
				}
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Fatalf("%v; want %q", err, c.says)
				}
				openssl(t, dir, c.fix)
				odd{src: Source{Cert: read("new"), Key: key}}.run(t, der)
			})
		}
	})
}

func FuzzParse(f *testing.F) {
	t := &testing.T{}
	leaf := issue(t, nil, ecKey(elliptic.P256()), leafFor("a.test"))
	der, _ := x509.MarshalPKCS8PrivateKey(leaf.key)
	p12, _ := gopkcs12.Modern.WithIterations(1).Encode(leaf.key, leaf.Certificate, nil, "secret")
	rc2, _ := gopkcs12.LegacyRC2.WithIterations(1).Encode(leaf.key, leaf.Certificate, nil, "secret")
	f.Add(certPEM(leaf), keyPEM(leaf.key), []byte("secret"), false)
	f.Add(leaf.Raw, shrouded(10, "secret", der, nil), []byte("secret\n"), false)
	f.Add(signedData(nil, nil, nil, leaf), armor("ENCRYPTED PRIVATE KEY", shrouded(1, "x", der, nil)), []byte("x"), false)
	f.Add(p12, []byte{}, []byte("secret"), true)
	f.Add(rc2, []byte{}, []byte("secret"), true)
	f.Fuzz(func(t *testing.T, first, second, password []byte, isP12 bool) {
		s := Source{Cert: first, Key: second, Password: password}
		if isP12 {
			s = Source{PKCS12: first, Password: password}
		}
		pair, warnings, err := Parse(s)
		if (pair == nil) == (err == nil) {
			t.Fatal("neither or both")
		}
		for _, text := range append(warnings, fmt.Sprint(err)) {
			if len(text) > 4096 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
				t.Fatalf("not fit for a log line: %q", text)
			}
		}
		var p *Problem
		if err != nil && (!errors.As(err, &p) || p.Kind == nil || p.Role == "" || p.Expected == "" || p.Found == "" || p.Next == "") {
			t.Fatalf("incomplete: %#v", err)
		}
		if pair != nil {
			if _, err := NewSet([]*tls.Certificate{pair}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestAdviceForALB does what the problems of a bundle for AWS ALB say, and finds every certificate of it in what is left.
func TestAdviceForALB(t *testing.T) {
	one, two := certPEM(issue(t, nil, ecKey(elliptic.P256()), ca("one"))), certPEM(issue(t, nil, ecKey(elliptic.P256()), ca("two")))
	for name, bundle := range map[string][]byte{
		"blank lines": cat(one, []byte("\n \t\n"), two, []byte("\r\n")),
		"other text":  cat([]byte("subject=CN = one\n"), one, []byte("# a comment - with a hyphen\n\n"), two, []byte("end\n")),
	} {
		file := filepath.Join(t.TempDir(), "bundle.pem")
		if err := os.WriteFile(file, bundle, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Split("CA bundle", bundle, true)
		var p *Problem
		if !errors.As(err, &p) {
			t.Fatalf("%s: %v", name, err)
		}
		_, advice, _ := strings.Cut(p.Next, ": ")
		into := file
		if strings.Contains(advice, "NEW") {
			into += ".new"
		}
		advice = strings.NewReplacer("FILE", file, "NEW", into).Replace(advice)
		if out, err := exec.Command("sh", "-c", advice).CombinedOutput(); err != nil {
			t.Fatalf("%s: %s: %v %s", name, advice, err, out)
		}
		mended, err := os.ReadFile(into)
		if err != nil {
			t.Fatal(err)
		}
		if blocks, err := Split("CA bundle", mended, true); err != nil || len(blocks) != 2 {
			t.Errorf("%s: %s leaves %d certificates: %v", name, advice, len(blocks), err)
		}
	}
}

func TestOtherKey(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	leaf := issue(t, nil, ecKey(elliptic.P256()), leafFor("a.test"))
	for want, key := range map[string]crypto.Signer{"another ECDSA key": ecKey(elliptic.P256()), "an RSA key": rsaKey, "an Ed25519 key": edKey()} {
		if got := otherKey(key, leaf.Certificate); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
