package trust

import (
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

func TestRevocation(t *testing.T) {
	root := testpki.New(t)
	inter := root.Intermediate("Inter")
	alice, bob := inter.Client("alice"), inter.Client("bob")
	carol := root.Client("carol")

	t.Run("C02/same serial, other issuer", func(t *testing.T) {
		other := testpki.New(t)
		same := other.Client("same", testpki.Serial(carol.Cert.SerialNumber))
		s := storeCRL(t, Options{}, [][]byte{root.CRL(carol), other.CRL()}, root, other)
		refused(t, verify(s, carol), reason.ClientCertRevoked, 0)
		accepted(t, verify(s, same))
	})
	t.Run("C02/same key, other name", func(t *testing.T) {
		twin := testpki.New(t, testpki.KeyOf(root))
		s := storeCRL(t, Options{}, [][]byte{root.CRL(carol)}, root, twin)
		refused(t, verify(s, twin.Client("x")), reason.CRLMissing, 0)
	})
	t.Run("C03/not authenticated", func(t *testing.T) {
		other := testpki.New(t)
		good := root.CRL(carol)
		tampered := slices.Clone(good)
		tampered[len(tampered)-1] ^= 1
		for name, der := range map[string][]byte{
			"tampered":       tampered,
			"by another CA":  root.CRL(testpki.SignedBy(other), testpki.NoAKI()),
			"SHA-1":          root.CRL(testpki.CRLSHA1()),
			"trailing bytes": append(slices.Clone(good), 0),
		} {
			if _, err := newStore(t, Options{}, [][]byte{der}, root); err == nil {
				t.Errorf("%s: was taken", name)
			}
		}
		mute := testpki.New(t, testpki.KeyUsage(1<<5))
		if _, err := newStore(t, Options{}, [][]byte{mute.CRL()}, mute); err == nil || !strings.Contains(err.Error(), "cRLSign") {
			t.Error("a list of a CA that may not sign lists:", err)
		}
		// Named for root but with the key identifier of another CA: of no use to anyone, and said so.
		s := storeCRL(t, Options{}, [][]byte{root.CRL(testpki.SignedBy(other))}, root)
		refused(t, verify(s, carol), reason.CRLMissing, 0)
		if len(s.Warnings()) != 1 {
			t.Error("no warning")
		}
		// The same key under another name.
		s = storeCRL(t, Options{}, [][]byte{root.CRL(testpki.IssuerName(other.Cert.RawSubject))}, root)
		refused(t, verify(s, carol), reason.CRLMissing, 0)
	})
	t.Run("C03/intermediate's list by a stranger", func(t *testing.T) {
		s := storeCRL(t, Options{}, [][]byte{inter.CRL(testpki.SignedBy(testpki.New(t)), testpki.NoAKI())}, root)
		refused(t, verify(s, alice), reason.CRLMissing, 0)
	})
	t.Run("C04/stale", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			root := testpki.New(t)
			carol, dave := root.Client("carol", testpki.Lifetime(1000*time.Hour)), root.Client("dave", testpki.Lifetime(1000*time.Hour))
			list := [][]byte{root.CRL(dave)}
			closed := storeCRL(t, Options{}, list, root)
			grace := storeCRL(t, Options{Stale: StaleGrace, Grace: time.Hour}, list, root)
			ignore := storeCRL(t, Options{Stale: StaleIgnore}, list, root)
			present := storeCRL(t, Options{Missing: MissingIfPresent}, list, root)
			for _, s := range []*Store{closed, grace, ignore, present} {
				accepted(t, verify(s, carol))
			}
			time.Sleep(24*time.Hour + time.Minute)
			refused(t, verify(closed, carol), reason.CRLStale, 0)
			refused(t, verify(present, carol), reason.CRLStale, 0)
			accepted(t, verify(grace, carol))
			accepted(t, verify(ignore, carol))
			time.Sleep(time.Hour)
			refused(t, verify(grace, carol), reason.CRLStale, 0)
			accepted(t, verify(ignore, carol))
			for _, s := range []*Store{closed, grace, ignore} { // what a list once said stays said
				refused(t, verify(s, dave), reason.ClientCertRevoked, 0)
			}
		})
	})
	t.Run("C05/the newest list counts", func(t *testing.T) {
		older := root.CRL(testpki.Number(9), testpki.ThisUpdate(time.Now().Add(-time.Hour)))
		newer := root.CRL(testpki.Number(10), carol)
		for _, lists := range [][][]byte{{older, newer}, {newer, older}} {
			refused(t, verify(storeCRL(t, Options{}, lists, root), carol), reason.ClientCertRevoked, 0)
		}
		// A stale newest list does not give way to an older one that is not.
		stale := root.CRL(testpki.Number(11), testpki.NextUpdate(time.Now().Add(-time.Second)))
		refused(t, verify(storeCRL(t, Options{}, [][]byte{older, stale}, root), carol), reason.CRLStale, 0)
	})
	t.Run("C06/dates", func(t *testing.T) {
		now := time.Now()
		for _, c := range []struct {
			name  string
			items []testpki.CRLItem
			opts  Options
			want  reason.Reason
		}{
			{"4 minutes ahead", []testpki.CRLItem{testpki.ThisUpdate(now.Add(4 * time.Minute))}, Options{}, reason.Unset},
			{"10 minutes ahead", []testpki.CRLItem{testpki.ThisUpdate(now.Add(10 * time.Minute))}, Options{}, reason.CRLStale},
			{"10 minutes ahead, grace", []testpki.CRLItem{testpki.ThisUpdate(now.Add(10 * time.Minute))}, Options{Stale: StaleGrace, Grace: time.Hour}, reason.CRLStale},
			{"far future", []testpki.CRLItem{testpki.NextUpdate(now.AddDate(1000, 0, 0))}, Options{}, reason.Unset},
			{"no nextUpdate, fresh", []testpki.CRLItem{testpki.NextUpdate(time.Time{})}, Options{}, reason.Unset},
			{"no nextUpdate, 8 days", []testpki.CRLItem{testpki.NextUpdate(time.Time{}), testpki.ThisUpdate(now.Add(-8 * 24 * time.Hour))}, Options{}, reason.CRLStale},
		} {
			t.Run(c.name, func(t *testing.T) {
				v := verify(storeCRL(t, c.opts, [][]byte{root.CRL(c.items...)}, root), carol)
				if c.want == reason.Unset {
					accepted(t, v)
				} else {
					refused(t, v, c.want, 0)
				}
			})
		}
		if _, err := ParseCRL(root.CRL(testpki.NextUpdate(now.Add(-time.Hour)))); err == nil {
			t.Error("nextUpdate before thisUpdate was taken")
		}
		// One from the future does not hide the one in force.
		s := storeCRL(t, Options{}, [][]byte{root.CRL(testpki.Number(5), testpki.ThisUpdate(now.Add(time.Hour))), root.CRL(testpki.Number(4), carol)}, root)
		refused(t, verify(s, carol), reason.ClientCertRevoked, 0)
	})
	t.Run("C07/not understood", func(t *testing.T) {
		critical := func(arc int) pkix.Extension {
			return pkix.Extension{Id: []int{2, 5, 29, arc}, Critical: true, Value: []byte{0x30, 0}}
		}
		number := func(value ...byte) pkix.Extension { return pkix.Extension{Id: []int{2, 5, 29, 20}, Value: value} }
		for name, c := range map[string]struct {
			item testpki.CRLItem
			says string
		}{
			"unknown critical":         {testpki.CRLExt(testpki.Unknown), "critical extension 1.3.6.1.4.1.99999.1 is not understood"},
			"unknown critical entry":   {testpki.Entry(big.NewInt(5), testpki.Unknown), "entry 1: critical extension 1.3.6.1.4.1.99999.1"},
			"critical freshestCRL":     {testpki.CRLExt(critical(46)), "2.5.29.46 is not understood"},
			"delta on itself":          {testpki.CRLExt(testpki.DeltaIndicator()), "delta list on number 1"},
			"delta without number":     {items(testpki.Delta(1), testpki.NoNumber()), "delta list without a number"},
			"delta on a negative":      {items(testpki.Delta(-1), testpki.Number(3)), "CRL number"},
			"two deltas":               {items(testpki.Delta(1), testpki.Delta(1), testpki.Number(3)), "twice"},
			"users and CAs":            {testpki.CRLExt(testpki.IDP("", 1, 2)), "leaves no certificates"},
			"some reasons":             {testpki.CRLExt(testpki.IDP("http://crl.test/", 3)), "onlySomeReasons"},
			"indirect":                 {testpki.CRLExt(testpki.IDP("", 4)), "indirectCRL"},
			"attribute certificates":   {testpki.CRLExt(testpki.IDP("", 5)), "onlyContainsAttributeCerts"},
			"unknown IDP field":        {testpki.CRLExt(testpki.IDP("", 9)), "malformed issuingDistributionPoint"},
			"IDP field twice":          {testpki.CRLExt(testpki.IDP("", 1, 1)), "malformed issuingDistributionPoint"},
			"IDP fields in disorder":   {testpki.CRLExt(testpki.IDP("", 2, 1)), "malformed issuingDistributionPoint"},
			"IDP flag of two bytes":    {testpki.CRLExt(testpki.RawIDP([]byte{0x81, 2, 0, 0xff})), "malformed issuingDistributionPoint"},
			"broken IDP":               {testpki.CRLExt(pkix.Extension{Id: []int{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 5}}), "malformed issuingDistributionPoint"},
			"IDP with more after it":   {testpki.CRLExt(pkix.Extension{Id: []int{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0, 5, 0}}), "malformed issuingDistributionPoint"},
			"two IDPs":                 {testpki.CRLExt(testpki.IDP("http://a.test/"), testpki.IDP("http://b.test/")), "2.5.29.28 stands there twice"},
			"relative name":            {testpki.CRLExt(testpki.RawIDP(testpki.RelativeName())), "relative to the issuer"},
			"mail address as point":    {testpki.CRLExt(testpki.RawIDP(testpki.FullName([]byte{0x81, 1, 'a'}))), "neither a URI nor a directory name"},
			"point without names":      {testpki.CRLExt(testpki.RawIDP(testpki.FullName())), "neither a URI nor a directory name"},
			"entry's issuer":           {testpki.Entry(big.NewInt(5), critical(29)), "indirect"},
			"entry's issuer, optional": {testpki.Entry(big.NewInt(5), pkix.Extension{Id: []int{2, 5, 29, 29}, Value: []byte{0x30, 0}}), "indirect"},
			"removeFromCRL":            {testpki.Entry(big.NewInt(5), testpki.ReasonCode(8)), "delta lists only"},
			"two reasons":              {testpki.Entry(big.NewInt(5), testpki.ReasonCode(1), testpki.ReasonCode(6)), "one reasonCode"},
			"reason below 0":           {testpki.Entry(big.NewInt(5), testpki.ReasonCode(0xff)), "one reasonCode"},
			"two numbers":              {testpki.CRLExt(number(2, 1, 7)), "2.5.29.20 stands there twice"},
			"number of 21 octets":      {items(testpki.NoNumber(), testpki.CRLExt(number(append([]byte{2, 21, 1}, make([]byte, 20)...)...))), "CRL number"},
			"number below 0":           {items(testpki.NoNumber(), testpki.CRLExt(number(2, 1, 0xff))), "CRL number"},
			"number that is none":      {items(testpki.NoNumber(), testpki.CRLExt(number(5, 0))), "CRL number"},
			"critical key identifier":  {items(testpki.NoAKI(), testpki.CRLExt(critical(35))), "authorityKeyIdentifier"},
			"entry without date":       {testpki.RawEntries([]byte{0x30, 3, 2, 1, 5}), "entry 1: expected a date"},
			"entry with wrong date":    {testpki.RawEntries([]byte("\x30\x12\x02\x01\x05\x17\x0d261320123456Z")), "entry 1: expected a date"},
			"serial with a zero more":  {testpki.RawEntries([]byte("\x30\x13\x02\x02\x00\x05\x17\x0d261120123456Z")), "entry 1: expected a serial number"},
			"entry with more after it": {testpki.RawEntries([]byte("\x30\x14\x02\x01\x05\x17\x0d261120123456Z\x05\x00")), "entry 1: expected crlEntryExtensions"},
			"issuer without name":      {testpki.IssuerName([]byte{0x30, 0}), "an issuer"},
			"issuer of 20 KiB":         {testpki.IssuerName(longName(20 << 10)), "at most 16384 bytes"},
			"issuer as a number":       {testpki.IssuerName([]byte{0x30, 12, 0x31, 10, 0x30, 8, 6, 3, 0x55, 4, 3, 2, 1, 5}), "an issuer"},
		} {
			l, err := ParseCRL(root.CRL(c.item))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, %v", name, l, err)
			}
		}
		fine := testpki.Unknown
		fine.Critical = false
		if _, err := ParseCRL(root.CRL(testpki.CRLExt(fine))); err != nil {
			t.Error(err)
		}
	})
	t.Run("C07/list of one distribution point", func(t *testing.T) {
		a, b := "http://crl.test/a", "http://crl.test/b"
		inA, inB, out := root.Client("a", testpki.CRLPoint(a)), root.Client("b", testpki.CRLPoint(b)), root.Client("none")
		s := storeCRL(t, Options{}, [][]byte{root.CRL(inA, testpki.CRLExt(testpki.IDP(a)))}, root)
		refused(t, verify(s, inA), reason.ClientCertRevoked, 0)
		refused(t, verify(s, inB), reason.CRLMissing, 0)
		refused(t, verify(s, out), reason.CRLMissing, 0)
		s = storeCRL(t, Options{}, [][]byte{root.CRL(inA, testpki.CRLExt(testpki.IDP(a))), root.CRL(testpki.Number(8), testpki.CRLExt(testpki.IDP(b)))}, root)
		refused(t, verify(s, inA), reason.ClientCertRevoked, 0)
		accepted(t, verify(s, inB))
	})
	t.Run("C08/hold and release", func(t *testing.T) {
		hold := root.CRL(testpki.Entry(carol.Cert.SerialNumber, testpki.ReasonCode(6)))
		v := verify(storeCRL(t, Options{}, [][]byte{hold}, root), carol)
		refused(t, v, reason.ClientCertRevoked, 0)
		if !strings.Contains(v.Found, "certificateHold") || !strings.Contains(v.Expected, "number 1 of") {
			t.Errorf("evidence: %s, %s", v.Expected, v.Found)
		}
		accepted(t, verify(storeCRL(t, Options{}, [][]byte{hold, root.CRL(testpki.Number(2))}, root), carol))
	})
	t.Run("C09/issuers and missing lists", func(t *testing.T) {
		for _, c := range []struct {
			name    string
			missing MissingPolicy
			lists   [][]byte
			want    reason.Reason
			depth   int
		}{
			{"leaf: none", MissingLeaf, [][]byte{}, reason.CRLMissing, 0},
			{"leaf: root's only", MissingLeaf, [][]byte{root.CRL()}, reason.CRLMissing, 0},
			{"leaf: issuer's", MissingLeaf, [][]byte{inter.CRL(bob)}, reason.Unset, 0},
			{"leaf: issuer revoked", MissingLeaf, [][]byte{inter.CRL(), root.CRL(inter)}, reason.ClientIssuerRevoked, 1},
			{"leaf: revoked", MissingLeaf, [][]byte{inter.CRL(alice)}, reason.ClientCertRevoked, 0},
			{"chain: issuer's only", MissingChain, [][]byte{inter.CRL()}, reason.CRLMissing, 1},
			{"chain: root's missing, revoked", MissingChain, [][]byte{inter.CRL(alice)}, reason.ClientCertRevoked, 0},
			{"chain: both", MissingChain, [][]byte{inter.CRL(), root.CRL()}, reason.Unset, 0},
			{"if present: none", MissingIfPresent, [][]byte{}, reason.Unset, 0},
			{"if present: issuer revoked", MissingIfPresent, [][]byte{root.CRL(inter)}, reason.ClientIssuerRevoked, 1},
			{"if present: revoked", MissingIfPresent, [][]byte{inter.CRL(alice)}, reason.ClientCertRevoked, 0},
			{"stale list of the root", MissingLeaf, [][]byte{inter.CRL(), root.CRL(testpki.NextUpdate(time.Now().Add(-time.Second)))}, reason.CRLStale, 1},
		} {
			t.Run(c.name, func(t *testing.T) {
				v := verify(storeCRL(t, Options{Missing: c.missing}, c.lists, root), alice)
				if c.want == reason.Unset {
					accepted(t, v)
				} else {
					refused(t, v, c.want, c.depth)
				}
			})
		}
		t.Run("intermediate as anchor", func(t *testing.T) {
			s := storeCRL(t, Options{Missing: MissingChain}, [][]byte{inter.CRL(bob), root.CRL(inter)}, inter)
			accepted(t, verify(s, alice)) // the anchor is trusted by decision, not by its issuer
			refused(t, verify(s, bob), reason.ClientCertRevoked, 0)
		})
	})
	t.Run("C10/lists of strangers are inert", func(t *testing.T) {
		var lists [][]byte
		for range 50 {
			stranger := testpki.New(t)
			lists = append(lists, stranger.CRL(testpki.Entry(carol.Cert.SerialNumber)))
		}
		s := storeCRL(t, Options{}, append(lists, root.CRL()), root)
		accepted(t, verify(s, carol))
		refused(t, verify(storeCRL(t, Options{}, append(lists, root.CRL(carol)), root), carol), reason.ClientCertRevoked, 0)
		if len(s.Warnings()) != 50 {
			t.Errorf("%d warnings", len(s.Warnings()))
		}
	})
	t.Run("C11/serials", func(t *testing.T) {
		high := root.Client("high", testpki.Serial(big.NewInt(0xaf01)))
		s := storeCRL(t, Options{}, [][]byte{root.CRL(testpki.Entry(big.NewInt(-0xaf01)), testpki.Entry(big.NewInt(0xaf0100)), testpki.Entry(new(big.Int)))}, root)
		accepted(t, verify(s, high))
		refused(t, verify(storeCRL(t, Options{}, [][]byte{root.CRL(high)}, root), high), reason.ClientCertRevoked, 0)
	})
	t.Run("C12/many entries", func(t *testing.T) {
		items := []testpki.CRLItem{carol}
		for i := range 20_000 {
			items = append(items, testpki.Entry(big.NewInt(int64(i)+1)))
		}
		s := storeCRL(t, Options{}, [][]byte{root.CRL(items...)}, root)
		refused(t, verify(s, carol), reason.ClientCertRevoked, 0)
		accepted(t, verify(s, root.Client("dave")))
	})
	t.Run("C22/which file is which", func(t *testing.T) {
		der := root.CRL(carol)
		crlPEM := testpki.PEM("X509 CRL", der)
		for name, data := range map[string][]byte{"DER": der, "PEM": crlPEM, "PEM with comment": append([]byte("0 comments\n"), crlPEM...)} {
			if l, err := ParseCRL(data); err != nil || l.Len() != 1 {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name, c := range map[string]struct {
			data []byte
			says string
		}{
			"two blocks":       {slices.Concat(crlPEM, crlPEM), "more than one"},
			"CA bundle":        {root.PEM(), "CA bundle"},
			"CA DER":           {root.DER(), "CA certificate"},
			"empty":            {nil, "neither"},
			"text":             {[]byte("<html>"), "neither"},
			"key":              {root.KeyPEM(), "PRIVATE KEY"},
			"truncated":        {crlPEM[:len(crlPEM)/2], "ends before"},
			"truncated DER":    {der[:len(der)/2], "expected a CertificateList"},
			"garbage as DER":   {[]byte{0x30, 0x82, 1, 1}, "expected a CertificateList"},
			"damaged boundary": {append([]byte("----BEGIN X509 CRL-----\n"), crlPEM...), "damaged"},
		} {
			if _, err := ParseCRL(c.data); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, _, err := LoadBundle(crlPEM, false); err == nil || !strings.Contains(err.Error(), "revocation list") {
			t.Error(err)
		}
		if _, _, err := LoadBundle(der, false); err == nil || !strings.Contains(err.Error(), "DER") {
			t.Error(err)
		}
	})
	t.Run("concurrent", func(t *testing.T) {
		s := storeCRL(t, Options{}, [][]byte{inter.CRL(bob), root.CRL()}, root)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 20 {
					if !verify(s, alice).Accepted || verify(s, bob).Reason != reason.ClientCertRevoked {
						t.Error("cross answer")
					}
				}
			})
		}
		wg.Wait()
	})
}
