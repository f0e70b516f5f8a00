package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"countersign/internal/identity"
	"countersign/internal/reason"
	"countersign/internal/record"
)

// Bounds of the inventory.
const (
	maxClients  = 100_000
	maxNetworks = 16 // that are kept of a client
	maxHosts    = 16
	maxChain    = 32 << 10             // bytes of certificates that are kept of a client
	maxLinked   = 16                   // of those
	maxIssuers  = 16                   // names
	maxGuest    = 8 << 10              // and of one that was not verified
	forgetAfter = 400 * 24 * time.Hour // a client that was not seen
	manyWindow  = 10 * time.Minute     // what "at once" is
	maxSpread   = 20_000               // certificates whose networks are watched
	maxStray    = maxSpread / 4        // of those, that were not verified
	maxCrowds   = 20                   // conditions
)

// Network is where a client came from: a /24 of IPv4 or a /48 of IPv6.
type Network struct {
	Network string    `json:"network"`
	Last    time.Time `json:"last_seen"`
	Count   int64     `json:"count"`
}

// HostUse is a host that a client was let in to.
type HostUse struct {
	Listener string    `json:"listener"`
	Host     string    `json:"host"`
	Last     time.Time `json:"last_seen"`
	Count    int64     `json:"count"`
	// Unnamed says that it asked for no name that the host has, and the host stood in. Such uses are kept apart.
	Unnamed bool `json:"unnamed,omitempty"`
	// TLS is the newest version with which it came, as crypto/tls names it.
	TLS string `json:"tls"`
	// LastTLS12 and CountTLS12 are when it came with TLS 1.2 the last time, and how often.
	LastTLS12  time.Time `json:"last_tls12,omitzero"`
	CountTLS12 int64     `json:"count_tls12,omitempty"`
}

// place is where a client was let in, by name or not, and with which version of TLS.
type place struct {
	listener, host, version string
	unnamed                 bool
}

// sighted is a certificate that was seen since the last batch.
type sighted struct {
	sum  [sha256.Size]byte
	leaf []byte // DER
	// verified says that there was a verified chain. Then chain has what the client sent besides its own certificate, as far as
	// it is kept, in DER, seen last first, and issuers are the names of those who signed the verified certificates, in DER. cut
	// says that there was too much.
	verified    bool
	chain       [][]byte
	cut         bool
	issuers     [][]byte
	first, last time.Time
	count       int64
	verdict     reason.Reason
	verdictAt   time.Time
	networks    []seenAt[netip.Prefix]
	hosts       []seenAt[place]
	// others are sightings that found no room in networks, and otherHosts in hosts.
	others, otherHosts int64

	subject string // as it was written
}

type seenAt[T comparable] struct {
	what  T
	last  time.Time
	count int64
}

// at counts what in list, and returns false where it is new and there is no room: limit is how many there may be.
func at[T comparable](list []seenAt[T], limit int, what T, now time.Time) ([]seenAt[T], bool) {
	for i := range list {
		if list[i].what == what {
			list[i].last = now
			list[i].count++
			return list, true
		}
	}
	if len(list) >= limit {
		return list, false // the next batch has room again
	}
	return append(list, seenAt[T]{what, now, 1}), true
}

// What sightings take of memory at most, besides their certificates.
const (
	sightedBytes = 512
	networkBytes = 2 * 64
	hostBytes    = 2*88 + 256
	pieceBytes   = 64 // besides its own: a certificate of an issuer, or a name
)

// size is about how many bytes it takes in the file.
func (c *sighted) size() int {
	return clientRow + len(c.leaf) + sizeOf(c.chain) + networkBytes*len(c.networks) + hostBytes*len(c.hosts)
}

func sizeOf(list [][]byte) (n int) {
	for _, b := range list {
		n += len(b)
	}
	return n
}

func has(list [][]byte, b []byte) bool {
	return slices.ContainsFunc(list, func(k []byte) bool { return bytes.Equal(k, b) })
}

// believe takes the chain of a client that was verified, and returns what that took of memory. Kept is what the client sent
// that leads from its own certificate upwards, by names: of cross-signed certificates another trust store needs another.
// Whatever it sends, only its CA can fill the file.
func (c *sighted) believe(s *record.Sighting) (grown int) {
	if s.Identity == nil {
		return 0
	}
	chain := s.Identity.Chain()
	for _, k := range chain {
		if len(c.issuers) < maxIssuers && !has(c.issuers, k.RawIssuer) {
			c.issuers = append(c.issuers, bytes.Clone(k.RawIssuer))
			grown += len(k.RawIssuer) + pieceBytes
		}
	}
	c.verified = true
	var all [maxLinked]*x509.Certificate
	links := linked(all[:0], s.Presented, chain)
	size, fresh := len(c.leaf), false
	for _, k := range links {
		size, fresh = size+len(k.Raw), fresh || !has(c.chain, k.Raw)
	}
	switch {
	case !fresh:
		return grown
	case size > maxChain || len(links) == maxLinked:
		c.cut = true
		return grown
	}
	var newest [][]byte
	for _, k := range links {
		newest = append(newest, bytes.Clone(k.Raw))
	}
	grown -= sizeOf(c.chain) + len(c.chain)*pieceBytes
	c.chain, c.cut = together(newest, c.chain, maxChain-len(c.leaf))
	return grown + sizeOf(c.chain) + len(c.chain)*pieceBytes
}

// linked appends to all, as far as it has room, what was sent of the verified chain, which may have the one above its CA in
// another trust store, and what else may lead upwards.
func linked(all, presented, chain []*x509.Certificate) []*x509.Certificate {
	add := func(p *x509.Certificate) bool {
		if len(all) == cap(all) || slices.ContainsFunc(all, p.Equal) {
			return false
		}
		all = append(all, p)
		return true
	}
	for _, k := range chain[1:] {
		if slices.ContainsFunc(presented[1:], k.Equal) {
			add(k)
		}
	}
	for more := true; more; {
		more = false
		for _, p := range presented[1:] {
			above := func(k *x509.Certificate) bool { return bytes.Equal(k.RawIssuer, p.RawSubject) }
			if (above(presented[0]) || slices.ContainsFunc(all, above)) && add(p) {
				more = true
			}
		}
	}
	return all
}

// together are the certificates of both lists, those of first before the others, as many as fit into so many bytes; cut says
// that not all do.
func together(first, others [][]byte, most int) (all [][]byte, cut bool) {
	for _, k := range slices.Concat(first, others) {
		switch {
		case has(all, k):
		case len(k) > most:
			cut = true
		default:
			all, most = append(all, k), most-len(k)
		}
	}
	return all, cut
}

// note counts s, and returns what that took of memory. Without room no networks and hosts are added.
func (c *sighted) note(s *record.Sighting, room bool) (grown int) {
	c.last, c.verdict, c.verdictAt = s.Time, s.Verdict, s.Time
	if s.Again {
		return 0
	}
	c.count++
	networks, hosts := len(c.networks), len(c.hosts)
	mostNetworks, mostHosts := networks, hosts
	if room {
		mostNetworks, mostHosts = maxNetworks, 2*maxHosts // each with two versions of TLS
	}
	var kept bool
	if n := networkOf(s.Client); n.IsValid() {
		if c.networks, kept = at(c.networks, mostNetworks, n, s.Time); !kept {
			c.others++
		}
	}
	if s.Host != "" {
		if c.hosts, kept = at(c.hosts, mostHosts, place{s.Listener, s.Host, s.Version, s.Unnamed}, s.Time); !kept {
			c.otherHosts++
		}
	}
	return networkBytes*(len(c.networks)-networks) + hostBytes*(len(c.hosts)-hosts)
}

// networkOf is the network of an address with port; the zero Prefix for what has none.
func networkOf(client string) netip.Prefix {
	ap, err := netip.ParseAddrPort(client)
	if err != nil {
		return netip.Prefix{}
	}
	a, bits := ap.Addr().Unmap().WithZone(""), 48
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits)
	return p
}

// details are what is kept of a client besides what is searched for.
type details struct {
	Networks []Network `json:"networks,omitempty"`
	// Others counts sightings from networks that had no room here.
	Others int64     `json:"other_networks,omitempty"`
	Hosts  []HostUse `json:"hosts,omitempty"`
	// OtherHosts counts uses of hosts that had no room here.
	OtherHosts int `json:"other_hosts,omitempty"`

	Names []string `json:"names,omitempty"`
	EKU   []string `json:"eku,omitempty"`
	// Issuers are those of every certificate of its chains, if it was verified, and IssuersLast is when it came with each.
	Issuers     []string             `json:"issuers,omitempty"`
	IssuersLast map[string]time.Time `json:"issuers_last_seen,omitempty"`
}

// merge adds what was seen.
func (d *details) merge(c *sighted) {
	for _, n := range c.networks {
		text := n.what.String()
		i := slices.IndexFunc(d.Networks, func(k Network) bool { return k.Network == text })
		if i < 0 {
			d.Networks = append(d.Networks, Network{Network: text})
			i = len(d.Networks) - 1
		}
		d.Networks[i].Last, d.Networks[i].Count = n.last.UTC(), d.Networks[i].Count+n.count
	}
	slices.SortFunc(d.Networks, func(a, b Network) int { return b.Last.Compare(a.Last) })
	d.Others += c.others
	if len(d.Networks) > maxNetworks {
		for _, n := range d.Networks[maxNetworks:] {
			d.Others += n.Count
		}
		d.Networks = d.Networks[:maxNetworks]
	}
	for _, h := range c.hosts {
		host, listener := plain(h.what.host, maxHost), plain(h.what.listener, maxText)
		i := slices.IndexFunc(d.Hosts, func(k HostUse) bool { return k.Host == host && k.Listener == listener && k.Unnamed == h.what.unnamed })
		if i < 0 {
			d.Hosts = append(d.Hosts, HostUse{Host: host, Listener: listener, Unnamed: h.what.unnamed})
			i = len(d.Hosts) - 1
		}
		u := &d.Hosts[i]
		u.Count += h.count
		if h.last.After(u.Last) {
			u.Last = h.last.UTC()
		}
		u.TLS = max(u.TLS, h.what.version) // their names are in their order
		if h.what.version == tls.VersionName(tls.VersionTLS12) {
			if u.CountTLS12 += h.count; h.last.After(u.LastTLS12) {
				u.LastTLS12 = h.last.UTC()
			}
		}
	}
	slices.SortFunc(d.Hosts, func(a, b HostUse) int { return b.Last.Compare(a.Last) })
	d.OtherHosts += int(c.otherHosts)
	if len(d.Hosts) > maxHosts {
		for _, h := range d.Hosts[maxHosts:] {
			d.OtherHosts += int(h.Count)
		}
		d.Hosts = d.Hosts[:maxHosts]
	}
	for _, i := range c.issuers {
		issuer := name(i)
		if d.IssuersLast == nil {
			d.Issuers, d.IssuersLast = nil, make(map[string]time.Time)
		}
		if !slices.Contains(d.Issuers, issuer) {
			d.Issuers = append(d.Issuers, issuer)
		}
		d.IssuersLast[issuer] = c.last.UTC()
	}
	if len(d.Issuers) > maxIssuers { // those of this time were seen last
		slices.SortStableFunc(d.Issuers, func(a, b string) int { return d.IssuersLast[b].Compare(d.IssuersLast[a]) })
		for _, i := range d.Issuers[maxIssuers:] {
			delete(d.IssuersLast, i)
		}
		d.Issuers = d.Issuers[:maxIssuers]
	}
}

// Where clients are: those that were verified, once at least, and the others.
const (
	verified   = "clients"
	unverified = "guests"
)

// update writes what was seen into the inventory.
func (w *writer) update(ctx context.Context, tx *sql.Tx, seen []*sighted) error {
	for _, c := range seen {
		if err := w.updateOne(ctx, tx, c); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) updateOne(ctx context.Context, tx *sql.Tx, c *sighted) error {
	leaf, err := x509.ParseCertificate(c.leaf)
	if err != nil {
		return nil // it was parsed before
	}
	c.subject = name(leaf.RawSubject)
	sha := hex.EncodeToString(c.sum[:])
	var first, count int64
	var more, others []byte
	table := verified
	err = tx.QueryRowContext(ctx, "SELECT first, count, more, others FROM clients WHERE sha256 = ?", sha).Scan(&first, &count, &more, &others)
	if errors.Is(err, sql.ErrNoRows) {
		table = unverified
		err = tx.QueryRowContext(ctx, "SELECT first, count, more FROM guests WHERE sha256 = ?", sha).Scan(&first, &count, &more)
	}
	d := details{Names: names(leaf), EKU: uses(leaf)}
	switch {
	case errors.Is(err, sql.ErrNoRows):
		first = c.first.UnixMicro()
	case err != nil:
		return err
	default:
		var was details
		if json.Unmarshal(more, &was) == nil {
			d = was
		}
		if table == unverified && c.verified {
			if _, err := tx.ExecContext(ctx, "DELETE FROM guests WHERE sha256 = ?", sha); err != nil {
				return err
			}
		}
	}
	d.merge(c)
	most := maxGuest
	if c.verified {
		table, most = verified, maxChain
		if others, err = keepChain(ctx, tx, c, others); err != nil {
			return err
		}
	}
	if more, err = json.Marshal(d); err != nil {
		return err
	}
	der := c.leaf
	if len(der) > most {
		der = []byte{}
	}
	if table == unverified {
		w.guests += clientRow + len(more) + len(der)
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO "+table+` (sha256, subject, issuer, serial, not_before, not_after, first, last, count, verdict, verdict_at, more, leaf, others)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET last = excluded.last, count = excluded.count,
		verdict = excluded.verdict, verdict_at = excluded.verdict_at, more = excluded.more, others = excluded.others`,
		sha, c.subject, name(leaf.RawIssuer), plain(identity.SerialHex(leaf.SerialNumber), 64), leaf.NotBefore.Unix(), leaf.NotAfter.Unix(),
		first, c.last.UnixMicro(), count+c.count, verdictOf(c.verdict), c.verdictAt.UnixMicro(), more, der, append([]byte{}, others...))
	return err
}

// tooLarge stands for a chain that is not kept. It stays: what is kept instead would not be all that the client can show.
var tooLarge = []byte{0}

// keepChain keeps what the client sent of its chains, with what was kept before, and returns what stands for it; was stood for
// that before. What is kept is never replaced by less.
func keepChain(ctx context.Context, tx *sql.Tx, c *sighted, was []byte) ([]byte, error) {
	if c.cut || bytes.Equal(was, tooLarge) {
		return tooLarge, nil
	}
	var der []byte
	var before [][]byte
	switch err := tx.QueryRowContext(ctx, "SELECT der FROM chains WHERE sha256 = ?", was).Scan(&der); {
	case errors.Is(err, sql.ErrNoRows):
		if len(was) > 0 && len(c.chain) == 0 {
			return was, nil // it is missing still
		}
		was = nil
	case err != nil:
		return nil, err
	}
	for len(der) > 0 {
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(der, &v)
		if err != nil {
			was, before = nil, nil
			break
		}
		before, der = append(before, v.FullBytes), rest
	}
	if !slices.ContainsFunc(c.chain, func(k []byte) bool { return !has(before, k) }) {
		return was, nil
	}
	kept, cut := together(c.chain, before, maxChain-len(c.leaf))
	if cut {
		return tooLarge, nil
	}
	all := slices.Concat(kept...)
	sum := sha256.Sum256(all)
	_, err := tx.ExecContext(ctx, "INSERT INTO chains (sha256, der, clients) VALUES (?, ?, 0) ON CONFLICT (sha256) DO NOTHING", sum[:], all)
	return sum[:], err
}

// clientRow is what a row takes besides its details and its certificate, about.
const clientRow = 1 << 10

// tidyClients forgets who has not come for long, and who came longest ago where there are too many.
func tidyClients(ctx context.Context, tx *sql.Tx, now time.Time) error {
	for _, table := range []string{verified, unverified} {
		if _, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE last < ?", now.Add(-forgetAfter).UnixMicro()); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE sha256 IN (SELECT sha256 FROM "+table+" ORDER BY last DESC LIMIT -1 OFFSET ?)", maxClients); err != nil {
			return err
		}
	}
	return nil
}

// tidyGuests leaves of those who were not verified the last ones that a tenth of the file has room for: anybody can make
// such certificates, and there is nothing else that they can push out.
func (w *writer) tidyGuests(ctx context.Context, s *Settings) error {
	w.guests = 0
	most := s.Bytes / 10
	for range maxRounds {
		var used int64
		if err := one(ctx, w.db, &used, "SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE aggregate = TRUE AND name = 'guests'"); err != nil {
			return err
		}
		if used <= most {
			break
		}
		n, err := count(ctx, w.db, unverified)
		if err != nil {
			return err
		}
		w.apart = 0 // it has to be counted anew
		if err := w.fewer(ctx, unverified, n*int(used-most+s.Bytes/100)/int(used)+1); err != nil {
			return err
		}
	}
	return nil
}

// fewGuests removes half of those who were not verified, and has the file measured anew.
func (w *writer) fewGuests(ctx context.Context) error {
	w.apart = 0
	n, err := count(ctx, w.db, unverified)
	if err != nil || n == 0 {
		return err
	}
	return w.fewer(ctx, unverified, (n+1)/2)
}

// spread watches from how many networks each certificate is used at once. It belongs to the writer.
type spread struct {
	of    map[[sha256.Size]byte]*crowd
	stray int // how many of them were not verified
}

type crowd struct {
	subject  string
	verified bool
	networks []seenAt[netip.Prefix]
}

// look takes what was seen, and returns a condition for each certificate that was used from most networks or more within
// manyWindow.
func (s *spread) look(seen map[[sha256.Size]byte]*sighted, most int, now time.Time) (list []Condition) {
	if s.of == nil {
		s.of = make(map[[sha256.Size]byte]*crowd)
	}
	for sum, c := range seen {
		k := s.of[sum]
		if k == nil {
			if len(s.of) >= maxSpread || !c.verified && s.stray >= maxStray {
				continue // those that are watched leave after a while
			}
			k = &crowd{subject: c.subject, verified: c.verified}
			s.of[sum] = k
			if !k.verified {
				s.stray++
			}
		}
		for _, n := range c.networks {
			k.networks, _ = at(k.networks, maxNetworks, n.what, n.last)
		}
	}
	more := 0
	for sum, k := range s.of {
		k.networks = slices.DeleteFunc(k.networks, func(n seenAt[netip.Prefix]) bool { return now.Sub(n.last) > manyWindow })
		switch n := len(k.networks); {
		case n == 0:
			delete(s.of, sum)
			if !k.verified {
				s.stray--
			}
		case n >= most && len(list) < maxCrowds:
			atLeast := ""
			if n == maxNetworks {
				atLeast = "at least "
			}
			list = append(list, Condition{ManyNetworks, fmt.Sprintf("certificate %s (%s) is used from %s%d networks within %s: if that is not one client with many ways out, its key has been copied; revoke it",
				hex.EncodeToString(sum[:]), k.subject, atLeast, n, manyWindow), now})
		case n >= most:
			more++
		}
	}
	slices.SortFunc(list, func(a, b Condition) int { return strings.Compare(a.Text, b.Text) })
	if more > 0 {
		list[len(list)-1].Text += fmt.Sprintf(" (and %d more certificates)", more)
	}
	return list
}
