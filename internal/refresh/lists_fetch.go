package refresh

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/internal/outbound"
	"countersign/internal/trust"
)

// refusal is why a list was not taken.
type refusal struct{ code, text string }

func (r *refusal) Error() string { return r.text }

func refuse(code, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

// fetch asks a URL once and plans the next time.
func (l *Lists) fetch(u *listURL, s Source) {
	defer guard(l.c.Log, "revocation lists")
	defer l.hurry()
	var wait time.Duration
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				l.c.Log.Error("revocation lists: bug", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				err = refuse(ListFetch, "the fetch ended in a panic, which is a bug")
			}
		}()
		wait, err = l.ask(u, s)
		return err
	}()
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active--
	u.busy, u.tried = false, true
	close(l.tried)
	l.tried = make(chan struct{})
	if err == nil {
		if u.code != "" {
			l.c.Log.Info("revocation list: put right", "url", shown(u.url), "condition", u.code, "after", now.Sub(u.since).Round(time.Millisecond).String())
		}
		u.failures, u.code, u.problem = 0, "", ""
		u.row.Checked = now
		u.due = now.Add(wait)
		return
	}
	if l.ctx.Err() != nil {
		return
	}
	code := ListFetch
	var r *refusal
	if errors.As(err, &r) {
		code = r.code
	}
	if u.code == "" {
		u.since = now
	}
	if u.code != code || u.problem != err.Error() {
		l.c.Log.Warn("revocation list", "url", shown(u.url), "condition", code, "problem", cut(err.Error()))
	}
	u.code, u.problem = code, err.Error()
	u.due = now.Add(backOff(u.failures))
	u.failures++
	if u.again {
		u.due = now
	}
}

// backOff doubles from one second to ten minutes; half of it is left to chance, so that many do not come at once.
func backOff(failures int) time.Duration {
	d := lastBackOff
	if failures < 10 {
		d = min(d, firstBackOff<<failures)
	}
	if d = d/2 + rand.N(d/2+1); d < firstBackOff {
		d = firstBackOff
	}
	return d
}

// interval is the time until a list should be fetched again.
func interval(every time.Duration, crl *trust.CRL, cacheControl string, now time.Time) time.Duration {
	if every <= 0 {
		every = refreshEvery
		if age, ok := maxAge(cacheControl); ok {
			every = max(min(every, age), leastHTTP)
		}
	}
	every = min(every, crl.NextUpdate().Sub(now)/2)
	if every > leastEvery {
		every -= rand.N(every/10 + 1)
	}
	return max(every, leastEvery)
}

// maxAge reads HTTP's max-age (RFC 9111 section 5.2.2.1).
func maxAge(cacheControl string) (time.Duration, bool) {
	for _, d := range strings.Split(cacheControl, ",") {
		if v, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(d)), "max-age="); ok {
			n, err := strconv.ParseUint(strings.Trim(v, `"`), 10, 31)
			return time.Duration(n) * time.Second, err == nil
		}
	}
	return 0, false
}

// ask makes one request and takes what came, or says why not. It returns the time until the next one.
func (l *Lists) ask(u *listURL, s Source) (time.Duration, error) {
	l.keep.Lock()
	have := l.current(u)
	kept := have != nil && (have.size > 0 || l.dir == nil)
	l.keep.Unlock()
	r := &outbound.Request{URL: s.URL, Hosts: s.Hosts, Accept: "application/pkix-crl, */*;q=0.1", MaxBytes: s.MaxBytes, Timeout: fetchTimeout}
	if r.MaxBytes <= 0 || r.MaxBytes > maxListBytes {
		r.MaxBytes = maxListBytes
	}
	if kept && l.trusted(have.crl, s) == nil {
		l.mu.Lock()
		r.ETag, r.LastModified = u.row.ETag, u.row.LastModified
		l.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(l.ctx, fetchTimeout)
	defer cancel()
	response, err := l.c.fetch(ctx, r)
	if err != nil {
		return 0, err
	}
	crl := have
	if !response.NotModified {
		if crl, err = l.judge(u, s, response); err != nil {
			return 0, err
		}
	}
	now := time.Now()
	if crl == nil {
		return 0, refuse(ListFetch, "expected a list, found that the server says it has not changed, although there is none yet")
	}
	if !now.Before(crl.crl.NextUpdate()) {
		return 0, expired(crl.crl)
	}
	return interval(s.Every, crl.crl, response.Header.Get("Cache-Control"), now), nil
}

func expired(crl *trust.CRL) error {
	return refuse(ListRefused, "expected a current list, found %s that expired at %s; ask the CA", crl, crl.NextUpdate().UTC().Format(time.RFC3339))
}

// trusted returns nil if s takes the list from its signer.
func (l *Lists) trusted(crl *trust.CRL, s Source) error {
	_, err := signerAmong(crl, s)
	return err
}

// signerAmong returns who of the signers of s signed a list; nil where it may be another CA that is not known here.
func signerAmong(crl *trust.CRL, s Source) (*x509.Certificate, error) {
	named := slices.ContainsFunc(s.Signers, func(ca *x509.Certificate) bool { return string(ca.RawSubject) == crl.Issuer() })
	if len(s.Signers) == 0 || s.Others && !named {
		return nil, nil
	}
	var first error
	for _, ca := range s.Signers {
		err := crl.SignedBy(ca)
		if err == nil {
			return ca, nil
		}
		if first == nil || string(ca.RawSubject) == crl.Issuer() {
			first = err
		}
	}
	return nil, refuse(ListRefused, "expected a list that is signed by one of the CAs it serves, found %s: %s; check the URL", crl, people(first.Error(), 300))
}

// judge decides on what a URL gave. It returns the list that is in force afterwards.
func (l *Lists) judge(u *listURL, s Source, response *outbound.Response) (*held, error) {
	body := sha256.Sum256(response.Body)
	l.mu.Lock()
	have, same := u.list, u.list != nil && u.body == body
	l.mu.Unlock()
	if same && l.trusted(have.crl, s) == nil {
		l.again(u, have, response)
		return have, nil
	}
	crl, err := trust.ParseCRL(response.Body)
	if err != nil {
		if kind := response.ContentType(); kind == "text/html" || bytes.HasPrefix(bytes.TrimSpace(response.Body), []byte("<")) {
			return nil, refuse(ListRefused, "expected a revocation list, found a page of type %q; check the URL", kind)
		} else if kind != "" {
			return nil, refuse(ListRefused, "%s (content type %s)", people(err.Error(), 400), kind)
		}
		return nil, refuse(ListRefused, "%s", people(err.Error(), 400))
	}
	now := time.Now()
	switch {
	case crl.ThisUpdate().After(now.Add(skew)):
		return nil, refuse(ListRefused, "expected a list made before now, found %s; check the clocks", crl)
	case !now.Before(crl.NextUpdate()):
		return nil, expired(crl)
	}
	signer, err := signerAmong(crl, s)
	if err != nil {
		return nil, err
	}
	der := derOf(crl, response.Body)
	h := &held{crl: crl, number: numberOf(der), sum: hexSum(crl.Sum())}

	l.keep.Lock()
	defer l.keep.Unlock()
	if have = l.current(u); have != nil {
		before := l.signerOf(have.crl)
		if signer == nil {
			if before != nil {
				if err := crl.SignedBy(before); err != nil {
					return nil, refuse(ListRefused, "expected a list of the key that signed the one before, found %s: %s; "+
						"if the CA has a new key, take the URL out of the configuration, reload, and add it again", crl, people(err.Error(), 300))
				}
				signer = before
			}
		}
		// A list that no known CA has signed is of no consequence, and must not keep the right one away.
		if have.crl.Scope() != crl.Scope() && !newSigner(u, s, signer) && before != nil {
			return nil, refuse(ListRefused, "expected a list of the same issuer, key and distribution point as before (%s), found %s of another scope; "+
				"if that is meant, take the URL out of the configuration, reload, and add it again", have.crl, crl)
		}
	}
	f := l.floorOf(crl)
	if signer == nil {
		signer = l.signerOf(crl)
	}
	if f != nil && f.Sum != h.sum && f.before(h.number, crl.ThisUpdate()) {
		return nil, refuse(ListRollback, "expected a list at least as new as the newest seen (%s), found %s; check that the URL gives the current list", f, crl)
	}
	l.mu.Lock()
	gone := l.urls[u.url] != u
	l.mu.Unlock()
	if gone || l.ctx.Err() != nil {
		return h, nil // not wanted any more, and nothing of it is kept
	}
	fresh := have == nil || have.sum != h.sum
	if !fresh {
		h.crl, h.size = have.crl, have.size // shared by those who have it
	}
	l.unsigned = slices.DeleteFunc(l.unsigned, func(o *held) bool { return have != nil && fresh && o.sum == have.sum })
	l.remember(h, signer, der)
	l.mu.Lock()
	u.list, u.body = h, body
	u.row = urlRow{URL: u.url, Sum: h.sum, Size: h.size, Scope: crl.Scope(), Signers: keysOf(s.Signers),
		ETag: response.ETag, LastModified: response.LastModified, Checked: now}
	l.mu.Unlock()
	l.save()
	if fresh {
		l.c.Log.Info("revocation list fetched", "url", shown(u.url), "list", crl.String(), "entries", crl.Len())
		select {
		case l.dirty <- struct{}{}:
		default:
		}
	}
	return h, nil
}

// again writes a list that the disk had no room for before.
func (l *Lists) again(u *listURL, h *held, response *outbound.Response) {
	l.keep.Lock()
	defer l.keep.Unlock()
	if h.size > 0 || l.dir == nil {
		return
	}
	l.remember(h, l.signerOf(h.crl), derOf(h.crl, response.Body))
	l.mu.Lock()
	u.row.Size, u.row.ETag, u.row.LastModified = h.size, response.ETag, response.LastModified
	l.mu.Unlock()
	l.save()
}

// newSigner says whether a list was signed by a CA that the configuration names now and did not when the list before
// came: so the CA has changed its key, and the operator knows. Another scope of a CA that was known is not taken: a
// stranger on the way could give the list of another distribution point, and so leave the right one's clients without.
func newSigner(u *listURL, s Source, signer *x509.Certificate) bool {
	return signer != nil && u.want != nil && len(u.want.Signers) > 0 && len(s.Signers) > 0 && !slices.Contains(u.row.Signers, keyOf(signer))
}

func keysOf(signers []*x509.Certificate) []string {
	keys := make([]string, 0, len(signers))
	for _, c := range signers {
		keys = append(keys, keyOf(c))
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}
