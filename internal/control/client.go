package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// What is at the other end of a socket may not be the program: nothing of it goes to a terminal as it is.
const (
	maxTold = 2 << 10  // of an error, in bytes
	maxRead = 64 << 20 // of a status
)

// Client asks a running program through its socket.
type Client struct {
	path string
	http *http.Client
}

// NewClient makes a client for the socket of an address of the configuration, unix:/path.
func NewClient(address string) *Client {
	path := pathOf(address)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: requestTime}).DialContext(ctx, "unix", path)
	}
	return &Client{path, &http.Client{Transport: &http.Transport{DialContext: dial, ResponseHeaderTimeout: requestTime, DisableKeepAlives: true, MaxResponseHeaderBytes: maxHead}}}
}

// Status asks how the program is.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	body, err := c.do(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	s := new(Status)
	if err := json.NewDecoder(io.LimitReader(body, maxRead)).Decode(s); err != nil {
		return nil, fmt.Errorf("control socket %s: expected a status, found %s", c.path, told(err.Error()))
	}
	return s, nil
}

// LogKeys writes the TLS secrets of new connections of a listener to w, for at most d, or until ctx ends.
func (c *Client) LogKeys(ctx context.Context, listener string, d time.Duration, w io.Writer) error {
	ask, err := json.Marshal(KeyLogRequest{listener, int(d / time.Second)})
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, d+requestTime)
	defer cancel()
	body, err := c.do(bounded, http.MethodPost, "/keylog", ask)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err = io.Copy(visible{w}, body); err != nil && ctx.Err() == nil {
		return fmt.Errorf("control socket %s: the key log broke off: %s", c.path, told(err.Error()))
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, ask []byte) (io.ReadCloser, error) {
	if err := checkPlace(c.path, uint32(os.Geteuid()), true); err != nil {
		return nil, fmt.Errorf("the control socket %s is not used: %w", c.path, err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, bytes.NewReader(ask))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("nobody answers at the control socket %s; is the program running, and with this configuration?", c.path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the control socket %s may not be used by this user; run this as the user of the program, or as root", c.path)
	case err != nil:
		return nil, fmt.Errorf("control socket %s: %s", c.path, told(err.Error()))
	case resp.StatusCode == http.StatusOK:
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var f failure
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&f); err != nil || f.Error == "" {
		f.Error = resp.Status
	}
	return nil, errors.New(told(f.Error))
}

// told bounds and escapes a text that came from the socket, to one line.
func told(text string) string {
	b := appendVisible(nil, text[:min(len(text), maxTold)])
	if len(text) > maxTold || len(b) > maxTold {
		b = append(b[:maxTold-3], "..."...)
	}
	return strings.ReplaceAll(string(b), "\n", " ")
}

// visible escapes what is written to it.
type visible struct{ to io.Writer }

func (v visible) Write(p []byte) (int, error) {
	if _, err := v.to.Write(appendVisible(make([]byte, 0, len(p)), string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// appendVisible appends text with everything but line ends and visible ASCII as \xNN.
func appendVisible(dst []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c == '\n' || c >= ' ' && c < 0x7f {
			dst = append(dst, c)
		} else {
			dst = fmt.Appendf(dst, `\x%02x`, c)
		}
	}
	return dst
}
