package journal

import (
	"context"
	"slices"
	"strings"
	"time"
)

// inUse is how long after it was seen a client counts as one that still comes.
const inUse = 30 * 24 * time.Hour

// atOnce is what a report takes for at once: longer than the condition, for it looks back.
const atOnce = 24 * time.Hour

// Expiring reports whether the certificate is still in use and ends within span from now, or has ended.
func (c *Client) Expiring(span time.Duration, now time.Time) bool {
	return now.Sub(c.Last) <= inUse && c.NotAfter.Before(now.Add(span))
}

// Spread is from how many networks the certificate was used in the day before it was last seen; MaxNetworks stands for that
// many or more.
func (c *Client) Spread() (n int) {
	for _, w := range c.Networks {
		if c.Last.Sub(w.Last) <= atOnce {
			n++
		}
	}
	return n
}

// MaxNetworks is how many networks of a client are kept.
const MaxNetworks = maxNetworks

// Issuer is a CA and what is known of its use.
type Issuer struct {
	Name string `json:"issuer"`
	// Stores are the trust stores that have it as an anchor; empty for an intermediate that clients send.
	Stores []string `json:"trust_stores,omitempty"`
	// Last is when a client with a certificate of it, or of a CA below it, was seen last; zero for never.
	Last time.Time `json:"last_seen,omitzero"`
	// Clients is how many verified certificates that were seen are of it.
	Clients int `json:"clients"`
	// LastClient is the subject of the one that was seen last.
	LastClient string `json:"last_client,omitempty"`
}

// Issuers returns the CAs that have not been used since a time, those used longest ago first, and since when the inventory
// knows. anchors are the CAs of trust stores by name, with the stores; those that were never seen are returned too.
func (r *Reader) Issuers(ctx context.Context, since time.Time, anchors map[string][]string) (unused []Issuer, from time.Time, err error) {
	all := make(map[string]*Issuer)
	for name, stores := range anchors {
		all[name] = &Issuer{Name: name, Stores: slices.Sorted(slices.Values(stores))}
	}
	err = r.Clients(ctx, func(c *Client) bool {
		if from.IsZero() || c.First.Before(from) {
			from = c.First
		}
		if !c.Verified {
			return true // anybody can name a CA
		}
		names := append([]string{c.Issuer}, c.Issuers...)
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			i := all[name]
			if i == nil {
				i = &Issuer{Name: name}
				all[name] = i
			}
			i.Clients++
			last, known := c.IssuersLast[name]
			if !known {
				last = c.Last
			}
			if last.After(i.Last) {
				i.Last, i.LastClient = last, c.Subject
			}
		}
		return true
	})
	for _, i := range all {
		if i.Last.Before(since) {
			unused = append(unused, *i)
		}
	}
	slices.SortFunc(unused, func(a, b Issuer) int {
		if d := a.Last.Compare(b.Last); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	return unused, from, err
}
