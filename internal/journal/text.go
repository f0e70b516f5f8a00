package journal

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"time"

	"countersign/internal/identity"
)

// The longest texts of an entry, in bytes, escapes included.
const (
	maxText  = 256
	maxName  = 192 // of a certificate
	maxNames = 10  // alternative names of a certificate
	maxHost  = 253
	maxPath  = 512
)

const hexDigits = "0123456789abcdef"

// plain makes a text of strangers printable ASCII, and cuts it to limit bytes: what is kept can be shown on any terminal.
func plain[T string | []byte](s T, limit int) string {
	clean := len(s) <= limit
	for i := 0; clean && i < len(s); i++ {
		clean = s[i] >= ' ' && s[i] <= '~'
	}
	if clean {
		return string(s)
	}
	b := make([]byte, 0, min(4*len(s), limit)+3)
	for i := 0; i < len(s); i++ {
		n := 1
		if s[i] < ' ' || s[i] > '~' {
			n = 4
		}
		if len(b)+n > limit {
			return string(append(b, "..."...))
		}
		if n == 1 {
			b = append(b, s[i])
		} else {
			b = append(b, '\\', 'x', hexDigits[s[i]>>4], hexDigits[s[i]&15])
		}
	}
	return string(b)
}

// maxRead is the longest text that is taken from the file.
const maxRead = 1024

// printable makes every text that v points to printable, whoever wrote the file, and returns an error for a time that cannot be
// shown.
func printable(v any) error { return eachPrintable(reflect.ValueOf(v).Elem()) }

func eachPrintable(v reflect.Value) (err error) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(plain(v.String(), maxRead))
	case reflect.Pointer:
		if !v.IsNil() {
			return eachPrintable(v.Elem())
		}
	case reflect.Slice:
		for i := 0; i < v.Len() && err == nil; i++ {
			err = eachPrintable(v.Index(i))
		}
	case reflect.Map: // of times, by name
		if v.Len() == 0 {
			return nil
		}
		all := reflect.MakeMap(v.Type())
		for k, at := range v.Seq2() {
			all.SetMapIndex(reflect.ValueOf(plain(k.String(), maxRead)), at)
			err = errors.Join(err, eachPrintable(at))
		}
		v.Set(all)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			if y := v.Interface().(time.Time).Year(); y < 0 || y > 9999 { // RFC 3339 section 1
				return fmt.Errorf("expected a time of the years 0 to 9999, found the year %d", y)
			}
			return nil
		}
		for i := 0; i < v.NumField() && err == nil; i++ {
			if f := v.Field(i); f.CanSet() || f.Kind() == reflect.Struct { // also of what is embedded
				err = eachPrintable(f)
			}
		}
	}
	return err
}

// name is NameOf.
func name(raw []byte) string { return NameOf(raw) }

// NameOf prints a name in DER as the journal keeps it.
func NameOf(raw []byte) string {
	text, err := identity.AppendName(nil, raw)
	if err != nil {
		return "(a name that cannot be printed)"
	}
	return plain(text, maxName)
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// names are the alternative names of c, each with its kind, as many as are of use.
func names(c *x509.Certificate) (list []string) {
	add := func(kind, name string) {
		if len(list) < maxNames {
			list = append(list, kind+":"+plain(name, maxName))
		}
	}
	for _, n := range c.URIs[:min(len(c.URIs), maxNames)] {
		add("uri", n.String())
	}
	for _, n := range c.DNSNames[:min(len(c.DNSNames), maxNames)] {
		add("dns", n)
	}
	for _, n := range c.EmailAddresses[:min(len(c.EmailAddresses), maxNames)] {
		add("email", n)
	}
	for _, n := range c.IPAddresses[:min(len(c.IPAddresses), maxNames)] {
		add("ip", n.String())
	}
	return list
}

// uses are the purposes of extendedKeyUsage (RFC 5280 section 4.2.1.12), none for a certificate without the extension.
func uses(c *x509.Certificate) (list []string) {
	for _, u := range c.ExtKeyUsage {
		if len(list) < maxNames {
			list = append(list, useNames[u])
		}
	}
	for _, id := range c.UnknownExtKeyUsage {
		if len(list) < maxNames {
			list = append(list, plain(id.String(), 64))
		}
	}
	return list
}

var useNames = map[x509.ExtKeyUsage]string{
	x509.ExtKeyUsageAny: "any", x509.ExtKeyUsageServerAuth: "serverAuth", x509.ExtKeyUsageClientAuth: "clientAuth",
	x509.ExtKeyUsageCodeSigning: "codeSigning", x509.ExtKeyUsageEmailProtection: "emailProtection", x509.ExtKeyUsageIPSECEndSystem: "ipsecEndSystem",
	x509.ExtKeyUsageIPSECTunnel: "ipsecTunnel", x509.ExtKeyUsageIPSECUser: "ipsecUser", x509.ExtKeyUsageTimeStamping: "timeStamping",
	x509.ExtKeyUsageOCSPSigning: "OCSPSigning", x509.ExtKeyUsageMicrosoftServerGatedCrypto: "msSGC", x509.ExtKeyUsageNetscapeServerGatedCrypto: "nsSGC",
	x509.ExtKeyUsageMicrosoftCommercialCodeSigning: "msCodeCom", x509.ExtKeyUsageMicrosoftKernelCodeSigning: "msKernelCode",
}
