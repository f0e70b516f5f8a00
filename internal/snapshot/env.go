package snapshot

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"slices"
	"time"

	"countersign/internal/certs"
	"countersign/internal/config"
	"countersign/internal/trust"
)

// Env is what a configuration is compiled with besides the files it names.
type Env struct {
	// Dir is the folder that relative paths start from.
	Dir string
	// Now is the time that dates of certificates are compared with.
	Now time.Time
	// Previous is the snapshot in force, from which what did not change is taken over. Nil is fine.
	Previous *Snapshot
	// Parser remembers the files that the configuration of Previous was parsed from. Nil is fine.
	Parser *config.Parser
	// Reread reads every file, also those of key pairs whose stat says that they are the same as for Previous.
	Reread bool
	// Keep compiles the configuration of Previous with newer revocation lists and nothing else that is new: CAs, keys and
	// all the rest are those of Previous, and lists that cannot be used now too. It is for when another configuration was
	// refused, which must not keep revocations away, nor let anything of it in.
	Keep bool
	// Asking compiles for who only asks what is decided about clients: a secret that cannot be had is a warning, and what
	// needs it, as a certificate of ours, is left out.
	Asking bool
	// First says that nothing is in force that could be kept. Where there are many certificates of ours, most signatures of
	// their issuers are left to Read.Unchecked then.
	First bool
	// Without says which CAs trust stores do without, for who asks what would happen then; nil for none.
	Without func(store string, ca *x509.Certificate) bool
	// Open returns what was fetched and is kept in the folder state, an absolute path. A warning says that nothing can be
	// kept there. Nil for commands that only look.
	Open    func(state string) (lists Lists, bundles Bundles, warning string, err error)
	Answers *trust.Answers
	Chains  *trust.Chains
	// Staples are the OCSP answers for our own certificates; nil for none.
	Staples *certs.Staples

	racy time.Duration // that of package snapshot, but in tests
}

// Read is what a compilation has found out about, also one that was refused.
type Read struct {
	// Sums are the hashes of every file that was named, by absolute path.
	Sums map[string]Sum
	// Outside is what is to be fetched.
	Outside Outside
	// Unchecked are signatures on certificates of ours that nobody has checked yet; see Env.First.
	Unchecked []Unchecked
}

// Lists are the revocation lists that were fetched or were in force before.
type Lists interface {
	// Fetched returns the newest good list of a URL, or why there is none.
	Fetched(url string) (*trust.CRL, error)
	// Learnt returns the lists that were fetched from these hosts because certificates name them.
	Learnt(hosts []string) []*trust.CRL
	// Admit returns the list to use in place of crl, which was read from raw: a newer one of the same issuer and scope if
	// there ever was one, with a sentence about that, or crl itself (threats C05).
	Admit(crl *trust.CRL, raw []byte) (use *trust.CRL, older string)
}

// Bundles are CA bundles that were fetched.
type Bundles interface {
	// Fetched returns the newest good bundle of a URL, or why there is none.
	Fetched(url string) ([]byte, error)
}

// Fetch is a URL that the configuration wants fetched, again and again.
type Fetch struct {
	URL string
	// Every is the time between two fetches; 0 leaves it to the content's own dates.
	Every time.Duration
	// Bundle says that it is a CA bundle, else it is a revocation list.
	Bundle bool
	// Signers are the CAs of the trust store that wants the list.
	Signers []*x509.Certificate
}

// Outside is what the configuration says about the world outside its files.
type Outside struct {
	// State is the folder for what outlives the process, an absolute path.
	State string
	// Allow are the networks, not public, that may be connected to.
	Allow []netip.Prefix
	// Fetches are all URLs of the configuration, Points the hosts from which lists are fetched that certificates name.
	Fetches []Fetch
	Points  []string
	// Responders are the OCSP responders and hosts of responders that may be asked.
	Responders []string
	// Stapled are our certificates for which OCSP answers are to be fetched.
	Stapled []*tls.Certificate
}

// memory is what compiling cost time and depends on content alone, by hashes of that content.
type memory struct {
	crls    map[Sum][]*trust.CRL
	bundles map[Sum]bundle
	pairs   map[Sum]pair
	// seen are the small files whose stat stands for their content, by path. Package snapshot makes use of that for pairs.
	seen map[string]seen
	// parsed counts the pairs that had to be parsed for this snapshot, files are how many it names, reads how many of them
	// were read.
	parsed, files, reads int
	// at is what was made of a file, by the place that names it in the configuration.
	at map[string]any
}

// fixed makes something of files, or under Keep returns what was made of them for the previous snapshot.
func fixed[T any](c *compiler, at string, make func() (T, bool)) (v T, ok bool) {
	if !c.Keep {
		v, ok = make()
	} else if v, ok = c.before.at[at].(T); !ok {
		c.problem(at, "", "it was no part of the configuration in force")
	}
	if ok {
		c.memory.at[at] = v
	}
	return v, ok
}

// kept returns what was made before of the file named at, if it may be used in place of a file that cannot be. The
// problems since mark become warnings then.
func kept[T any](c *compiler, at string, mark int) (v T, ok bool) {
	if !c.Keep {
		return v, false
	}
	if v, ok = c.before.at[at].(T); ok {
		for i := mark; i < len(c.problems); i++ {
			c.problems[i].Warning = true
			c.problems[i].Next = "mend the file; what was read of it before stays in force"
		}
		c.memory.at[at] = v
	}
	return v, ok
}

type bundle struct {
	certs    []*x509.Certificate
	warnings []string
}

// Unchecked is a signature on a certificate of a pair that the configuration names.
type Unchecked struct {
	certs.Signature
	Pair string // its files, as the configuration names them
}

// Serves reports whether a pair of s has the certificate followed by that issuer.
func (s *Snapshot) Serves(u *Unchecked) bool {
	for _, p := range s.memory.pairs {
		chain := p.cert.Certificate
		at := slices.IndexFunc(chain, func(der []byte) bool { return bytes.Equal(der, u.Subject.Raw) })
		if at >= 0 && at+1 < len(chain) && bytes.Equal(chain[at+1], u.Issuer.Raw) {
			return true
		}
	}
	return false
}

type pair struct {
	cert     *tls.Certificate
	warnings []string
}

// newMemory makes a memory that will hold about as much as another one; nil for nothing.
func newMemory(like *memory) *memory {
	if like == nil {
		like = new(memory)
	}
	return &memory{crls: make(map[Sum][]*trust.CRL), bundles: make(map[Sum]bundle), pairs: make(map[Sum]pair, len(like.pairs)), seen: make(map[string]seen, len(like.seen)), at: make(map[string]any, len(like.at))}
}

// recall returns what was made of content before, in this compilation or the previous one, or makes it. Only successes
// are kept.
func recall[T any](now, before map[Sum]T, sum Sum, make func() (T, error)) (T, error) {
	if v, ok := now[sum]; ok {
		return v, nil
	}
	v, ok := before[sum]
	if !ok {
		var err error
		if v, err = make(); err != nil {
			return v, err
		}
	}
	now[sum] = v
	return v, nil
}

// sumOf hashes several contents so that they cannot be cut differently.
func sumOf(parts ...[]byte) Sum {
	h := sha256.New()
	for _, p := range parts {
		s := sha256.Sum256(p)
		h.Write(s[:])
	}
	return Sum(h.Sum(nil))
}

// pairSum is what decides what a pair is: the hashes of certificate, key and PKCS#12 file, zero for none, and of the
// password.
func pairSum(cert, key, pkcs12, password Sum) Sum {
	var all [4 * len(cert)]byte
	for i, s := range [...]Sum{cert, key, pkcs12, password} {
		copy(all[i*len(s):], s[:])
	}
	return sha256.Sum256(all[:])
}
