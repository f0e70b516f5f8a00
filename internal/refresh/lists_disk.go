package refresh

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"slices"
	"strings"
	"time"
	"weak"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"countersign/internal/trust"
)

// What is kept on disk: each list as <SHA-256 of its DER>.crl, and index.json, which says what was the newest list of each
// issuer and scope and which list a URL gave. The lists come first, then the index that names them, then what it no
// longer names is removed; so a crash at any point leaves an index all of whose lists are there. The index before is kept
// as index.old.json: a damaged index must not bring back lists that were refused as too old (threats C05).
const (
	indexFile    = "index.json"
	oldIndexFile = "index.old.json"
	listSuffix   = ".crl"
	tempSuffix   = ".tmp"

	maxIndex     = 32 << 20
	maxKept      = 1024    // lists on disk
	maxKeptBytes = 1 << 30 // and their bytes
	maxFloors    = 2048    // issuers and scopes that are remembered
)

// index is the file's content, after a line with its SHA-256.
type index struct {
	Version int      `json:"version"`
	Floors  []*floor `json:"floors"`
	URLs    []urlRow `json:"urls"`
}

// floor is the newest list of one scope and signer that was ever in force. An older one is refused, also when the list
// itself is gone.
type floor struct {
	Scope      string    `json:"scope"`  // trust.CRL.Scope
	Signer     []byte    `json:"signer"` // a certificate of the key that signed it, DER
	Number     *big.Int  `json:"number,omitempty"`
	ThisUpdate time.Time `json:"thisUpdate"`
	Sum        string    `json:"sum"`
	Size       int64     `json:"size"` // of the list on disk; 0: it is not there
	Seen       time.Time `json:"seen"` // when a configuration or URL last had it

	signer *x509.Certificate
	crl    weak.Pointer[trust.CRL] // in memory as long as somebody uses it
	only   *trust.CRL              // where it is not on disk
}

// urlRow is what a URL gave last.
type urlRow struct {
	URL          string    `json:"url"`
	Sum          string    `json:"sum"`
	Size         int64     `json:"size"`
	Scope        string    `json:"scope"`
	Signers      []string  `json:"signers,omitempty"` // who could have signed it, when it came
	ETag         string    `json:"etag,omitempty"`
	LastModified string    `json:"lastModified,omitempty"`
	Checked      time.Time `json:"checked"`
	Learnt       time.Time `json:"learnt,omitzero"`
}

func keyOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// id names a floor. The signer's key is part of it, for another CA can give itself the same name and key identifier.
func (f *floor) id() string { return f.Scope + " " + keyOf(f.signer) }

// list returns the list if it is in memory.
func (f *floor) list() *trust.CRL {
	if f.only != nil {
		return f.only
	}
	return f.crl.Value()
}

func (f *floor) hold(crl *trust.CRL, size int64) {
	f.crl, f.only, f.Size = weak.Make(crl), nil, size
	if size == 0 {
		f.only = crl
	}
}

// before says whether a list is older than the newest: by number or by date (threats C05). A list without number is
// older than one with, since issuers that number their lists must not stop (RFC 5280 section 5.2.3).
func (f *floor) before(number *big.Int, thisUpdate time.Time) bool {
	if thisUpdate.Before(f.ThisUpdate) {
		return true
	}
	return f.Number != nil && (number == nil || number.Cmp(f.Number) < 0)
}

func (f *floor) String() string {
	number := "without number"
	if f.Number != nil {
		number = "number " + f.Number.String()
	}
	return number + ", thisUpdate " + f.ThisUpdate.UTC().Format(time.RFC3339)
}

// folder is a directory of kept lists. A nil folder keeps nothing.
type folder struct {
	path string
	root *os.Root
	fail func(op, name string) error // in tests: the disk's errors
}

func openFolder(path string) (*folder, error) {
	if path == "" {
		return nil, nil
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("revocation lists: expected a folder %s to keep them in, found %s; make it, or let this user make it", path, cause(err))
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("revocation lists: expected to read folder %s, found %s; check its permissions", path, cause(err))
	}
	return &folder{path: path, root: root}, nil
}

func (d *folder) failing(op, name string) error {
	if d.fail == nil {
		return nil
	}
	return d.fail(op, name)
}

// write puts a file in place as a whole or not at all. The rename is durable after sync.
func (d *folder) write(name string, data []byte) (err error) {
	temp := name + tempSuffix
	if err := d.root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err = d.failing("write", name); err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = d.failing("rename", name)
	}
	if err == nil {
		err = d.root.Rename(temp, name)
	}
	if err != nil {
		_ = d.root.Remove(temp)
	}
	return err
}

func (d *folder) sync() error {
	dir, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func (d *folder) read(name string, limit int64) ([]byte, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("it is larger than %d bytes", limit)
	}
	return data, err
}

// readIndex returns the newest index that is whole. A problem is a sentence for the operator.
func (d *folder) readIndex() (ix index, problem string, err error) {
	for _, name := range []string{indexFile, oldIndexFile} {
		data, rerr := d.read(name, maxIndex)
		switch {
		case errors.Is(rerr, fs.ErrNotExist):
			continue
		case errors.Is(rerr, fs.ErrPermission):
			return index{}, "", fmt.Errorf("revocation lists: expected to read %s/%s, found %s; check its permissions", d.path, name, cause(rerr))
		case rerr == nil:
			if ix, rerr = parseIndex(data); rerr == nil {
				return ix, problem, nil
			}
		}
		next := "the index before it is used"
		if name == oldIndexFile {
			next = "which lists were in force before is not known, so an older one would not be noticed; check the disk"
		}
		problem = fmt.Sprintf("%s/%s: expected the index of the kept lists, found it damaged (%s); %s", d.path, name, cause(rerr), next)
	}
	return index{}, problem, nil
}

func parseIndex(data []byte) (ix index, err error) {
	line, rest, ok := bytes.Cut(data, []byte("\n"))
	sum := sha256.Sum256(rest)
	if !ok || string(line) != hex.EncodeToString(sum[:]) {
		return ix, errors.New("its content is not what was written")
	}
	if err := json.Unmarshal(rest, &ix); err != nil {
		return index{}, errors.New("it is not JSON of the expected form")
	}
	if ix.Version != 1 {
		return index{}, fmt.Errorf("it has version %d, expected 1", ix.Version)
	}
	for _, f := range ix.Floors {
		if f == nil || !isSum(f.Sum) {
			return index{}, errors.New("it has an entry without a list")
		}
		if f.signer, err = x509.ParseCertificate(f.Signer); err != nil {
			return index{}, errors.New("it has an entry without a signer")
		}
	}
	for _, u := range ix.URLs {
		if !isSum(u.Sum) {
			return index{}, errors.New("it has a URL without a list")
		}
	}
	return ix, nil
}

// isSum also keeps everything but hexadecimal out of file names.
func isSum(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == 2*sha256.Size && strings.ToLower(s) == s
}

// writeIndex makes ix the index, and the one before the old one.
func (d *folder) writeIndex(ix index) error {
	body, err := json.Marshal(ix)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	data := append([]byte(hex.EncodeToString(sum[:])+"\n"), body...)
	if before, err := d.read(indexFile, maxIndex); err == nil {
		if _, err := parseIndex(before); err == nil {
			if err := d.write(oldIndexFile, before); err != nil {
				return err
			}
		}
	}
	if err := d.write(indexFile, data); err != nil {
		return err
	}
	return d.sync()
}

// clean removes lists that are not named, and what a crash left.
func (d *folder) clean(named map[string]bool) {
	dir, err := d.root.Open(".")
	if err != nil {
		return
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, n := range names {
			sum, list := strings.CutSuffix(n, listSuffix)
			if strings.HasSuffix(n, tempSuffix) || list && isSum(sum) && !named[sum] {
				_ = d.root.Remove(n)
			}
		}
		if err != nil || len(names) == 0 {
			return
		}
	}
}

// list reads a kept list and checks that it is what was written.
func (d *folder) list(sum string) (*held, error) {
	data, err := d.read(sum+listSuffix, maxListBytes)
	if err != nil {
		return nil, err
	}
	if found := sha256.Sum256(data); hex.EncodeToString(found[:]) != sum {
		return nil, errors.New("its content is not what was written")
	}
	crl, err := trust.ParseCRL(data)
	if err != nil {
		return nil, err
	}
	return &held{crl: crl, number: numberOf(data), sum: sum, size: int64(len(data))}, nil
}

// derOf returns the DER of a list that raw holds, as it is or in PEM; nil if it does not.
func derOf(crl *trust.CRL, raw []byte) []byte {
	if sha256.Sum256(raw) == crl.Sum() {
		return raw
	}
	for {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			return nil
		}
		if sha256.Sum256(block.Bytes) == crl.Sum() {
			return block.Bytes
		}
	}
}

// numberOf reads cRLNumber (RFC 5280 section 5.2.3) of a list that trust.ParseCRL accepted; nil if it has none.
func numberOf(der []byte) *big.Int {
	var list, tbs, exts, skip cryptobyte.String
	in := cryptobyte.String(der)
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !list.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return nil
	}
	tag := cbasn1.Tag(0).ContextSpecific().Constructed()
	for !tbs.PeekASN1Tag(tag) {
		var any cbasn1.Tag
		if !tbs.ReadAnyASN1(&skip, &any) {
			return nil
		}
	}
	if !tbs.ReadASN1(&exts, tag) || !exts.ReadASN1(&exts, cbasn1.SEQUENCE) {
		return nil
	}
	for !exts.Empty() {
		var ext, id, value cryptobyte.String
		if !exts.ReadASN1(&ext, cbasn1.SEQUENCE) || !ext.ReadASN1(&id, cbasn1.OBJECT_IDENTIFIER) ||
			!ext.SkipOptionalASN1(cbasn1.BOOLEAN) || !ext.ReadASN1(&value, cbasn1.OCTET_STRING) {
			return nil
		}
		if slices.Equal(id, []byte{0x55, 0x1d, 0x14}) { // 2.5.29.20
			n := new(big.Int)
			if !value.ReadASN1Integer(n) {
				return nil
			}
			return n
		}
	}
	return nil
}
