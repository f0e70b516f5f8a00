package trust

import (
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

func TestTried(t *testing.T) {
	now := time.Now()
	root, stranger := testpki.New(t), testpki.New(t)
	sub := root.Intermediate("Sub CA")
	alice := sub.Client("alice")

	t.Run("neither sent nor trusted", func(t *testing.T) {
		v := verify(store(t, Options{}, root), stranger.Client("mallory"))
		refused(t, v, reason.ClientCertUntrusted, 0)
		if len(v.Tried) != 1 || v.Tried[0].Anchored || v.Tried[0].Rule != reason.ClientCertUntrusted || len(v.Tried[0].Chain) != 1 || v.Tried[0].Found == "" {
			t.Errorf("%+v", v.Tried)
		}
	})
	t.Run("two ways, each with its fault", func(t *testing.T) {
		old := testpki.New(t, testpki.KeyOf(root), testpki.RawSubject(root.Cert.RawSubject), testpki.Expired())
		v := verify(store(t, Options{}, old), alice)
		if v.Accepted || len(v.Tried) != 1 || !v.Tried[0].Anchored || v.Tried[0].Rule != reason.ClientCertIssuerExpired || len(v.Tried[0].Chain) != 3 {
			t.Errorf("%v %+v", v.Reason, v.Tried)
		}
	})
	t.Run("revoked on every way", func(t *testing.T) {
		twin := testpki.New(t, testpki.KeyOf(root), testpki.RawSubject(root.Cert.RawSubject))
		s := storeCRL(t, Options{Missing: MissingLeaf}, [][]byte{sub.CRL(alice)}, root, twin)
		v := verify(s, alice)
		refused(t, v, reason.ClientCertRevoked, 0)
		if len(v.Tried) != 2 || v.Tried[0].Rule != reason.ClientCertRevoked || v.Tried[1].Rule != reason.ClientCertRevoked {
			t.Errorf("%+v", v.Tried)
		}
		e := s.Evidence(v.Chain, now)
		if len(e) != 1 || e[0].Kind != EvidenceCRL || e[0].Number != "1" || e[0].Depth != 0 || e[0].ThisUpdate.IsZero() || e[0].NextUpdate.Before(now) ||
			!strings.Contains(e[0].Source, "number 1 of") {
			t.Errorf("%+v", e)
		}
	})
	t.Run("responder", func(t *testing.T) {
		s := store(t, Options{OCSP: OCSP{Mode: OCSPRequire, Responder: ocspURL, Answers: NewAnswers(0)}}, root)
		bob := root.Client("bob")
		v := verify(s, bob)
		refused(t, v, reason.OCSPUnavailable, 0)
		e := s.Evidence(v.Chain, now)
		if len(e) != 1 || e[0].Kind != EvidenceOCSP || e[0].Status != "none" || e[0].Source != ocspURL {
			t.Errorf("%+v", e)
		}
	})
	t.Run("B21/bounded", func(t *testing.T) {
		var anchors []*testpki.Cert
		for range 20 {
			anchors = append(anchors, testpki.New(t, testpki.KeyOf(root), testpki.RawSubject(root.Cert.RawSubject), testpki.Expired()))
		}
		if v := verify(store(t, Options{}, anchors...), alice); v.Accepted || len(v.Tried) != maxTried {
			t.Errorf("%d chains are told", len(v.Tried))
		}
	})
	t.Run("accepted", func(t *testing.T) {
		s := storeCRL(t, Options{Missing: MissingLeaf}, [][]byte{sub.CRL()}, root)
		v := verify(s, alice)
		accepted(t, v)
		if v.Tried != nil {
			t.Errorf("an acceptance tells of %+v", v.Tried)
		}
		if !slices.ContainsFunc(s.Evidence(v.Chain, now), func(e Evidence) bool { return e.Kind == EvidenceCRL }) {
			t.Error("the list is not told")
		}
	})
}
