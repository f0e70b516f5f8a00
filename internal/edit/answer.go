package edit

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/internal/message"
)

// Answer is a response that is known beforehand: a fixed one, or the page of a maintenance. It is immutable.
type Answer struct {
	status       int
	page         variant
	alternatives []variant // to be chosen by Accept, before page
}

// variant is one form of an answer. The slices are shared by all who get them, and read-only.
type variant struct {
	media  string
	fields []message.Field
	body   []byte
}

// AnswerOptions are a fixed response as the configuration has it.
type AnswerOptions struct {
	Status      int
	ContentType string
	Body        []byte
	Headers     map[string]string
}

// MaxBody is the largest body of an answer.
const MaxBody = 256 << 10

// NewAnswer compiles a fixed response. Problems are reported under the keys of the configuration.
func NewAnswer(o AnswerOptions, report Report) *Answer {
	if o.Status == 0 {
		o.Status = http.StatusOK
	}
	empty := o.Status == http.StatusNoContent || o.Status == http.StatusResetContent || o.Status == http.StatusNotModified
	switch {
	case o.Status < 200 || o.Status > 599 || o.Status == http.StatusNotModified:
		report("status", "use one from 200 to 599", "%d is no status of a fixed response", o.Status)
	case o.Status >= 300 && o.Status < 400:
		report("status", "use redirect", "a response of status %d leads elsewhere", o.Status)
	case empty && len(o.Body) > 0:
		report("body", "remove it, or use status 200", "a response of status %d has no body", o.Status)
	}
	if len(o.Body) > MaxBody {
		report("body", "", "the body has %d bytes; expected at most %d", len(o.Body), MaxBody)
	}
	if o.ContentType == "" {
		o.ContentType = "text/plain; charset=utf-8"
	}
	v := variant{body: o.Body}
	if len(o.Body) > 0 {
		v.fields = append(v.fields, field("Content-Type", checkValue("content_type", o.ContentType, report)))
	}
	for _, name := range sorted(o.Headers) {
		at := "headers." + name
		if !checkName(at, name, true, report) {
			continue
		}
		switch {
		case strings.EqualFold(name, "content-type"):
			report(at, "use content_type", "the type of the body has a key of its own")
		case strings.EqualFold(name, "location"):
			report(at, "use redirect", "a fixed response leads nowhere")
		}
		v.fields = append(v.fields, field(name, checkValue(at, o.Headers[name], report)))
	}
	if !slices.ContainsFunc(v.fields, func(f message.Field) bool { return message.EqualFold(f.Name, "cache-control") }) {
		v.fields = append(v.fields, field("Cache-Control", "no-store"))
	}
	return &Answer{status: o.Status, page: v}
}

func field(name, value string) message.Field {
	return message.Field{Name: []byte(name), Value: []byte(value)}
}

// checkValue reports a value that could end before its end.
func checkValue(at, value string, report Report) string {
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r >= 0x7f }) || strings.TrimSpace(value) != value || value == "" || len(value) > maxValue {
		report(at, "write visible ASCII", "the value is empty, too long, or has a control character, a line end, or a character beyond ASCII")
	}
	return value
}

// MaintenanceOptions are a maintenance page as the configuration has it.
type MaintenanceOptions struct {
	RetryAfter  time.Duration
	Title, Text string
	HTML, JSON  []byte // whole bodies in place of ours; nil for none
}

const defaultRetryAfter = 5 * time.Minute

// NewMaintenance compiles a maintenance page: 503 with Retry-After, as HTML or, for clients that would rather have it, as
// JSON.
func NewMaintenance(o MaintenanceOptions, report Report) *Answer {
	if o.RetryAfter == 0 {
		o.RetryAfter = defaultRetryAfter
	}
	if o.RetryAfter < time.Second || o.RetryAfter > 30*24*time.Hour {
		report("retry_after", "use 5m", "retry_after is %s; expected from 1s to 720h", o.RetryAfter)
	}
	if o.Title == "" {
		o.Title = "Under maintenance"
	}
	if o.Text == "" {
		o.Text = "The service is being worked on and will be back soon."
	}
	after := strconv.Itoa(int(o.RetryAfter.Round(time.Second).Seconds()))
	if o.HTML == nil {
		o.HTML = []byte("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>" + escapeHTML(o.Title) + "</title>\n<h1>" + escapeHTML(o.Title) +
			"</h1>\n<p>" + escapeHTML(o.Text) + "</p>\n</html>\n")
	}
	if o.JSON == nil {
		o.JSON = []byte(`{"status":503,"title":` + quoteJSON(o.Title) + `,"detail":` + quoteJSON(o.Text) + `,"retry_after":` + after + "}\n")
	}
	for key, body := range map[string][]byte{"html_file": o.HTML, "json_file": o.JSON} {
		if len(body) > MaxBody {
			report(key, "", "the page has %d bytes; expected at most %d", len(body), MaxBody)
		}
	}
	form := func(media, contentType string, body []byte) variant {
		return variant{media, []message.Field{field("Content-Type", contentType), field("Retry-After", after), field("Cache-Control", "no-store"), field("Vary", "Accept")}, body}
	}
	return &Answer{status: http.StatusServiceUnavailable, page: form("text/html", "text/html; charset=utf-8", o.HTML),
		alternatives: []variant{form("application/json", "application/json", o.JSON)}}
}

// For returns the answer to a request. What it returns is shared and read-only; a caller leaves out the body for HEAD.
func (a *Answer) For(req *message.Request) (status int, fields []message.Field, body []byte) {
	v := &a.page
	if len(a.alternatives) > 0 {
		own := preference(req.Fields, a.page.media)
		for i := range a.alternatives {
			if q := preference(req.Fields, a.alternatives[i].media); q > own {
				v, own = &a.alternatives[i], q
			}
		}
	}
	return a.status, v.fields, v.body
}

// preference is how much a client would like media, in thousandths (RFC 9110 section 12.5.1): the quality that the most
// specific range gives it. Without Accept anything is as good as anything.
func preference(fields []message.Field, media string) int {
	kind, _, _ := strings.Cut(media, "/")
	best, quality, asked := -1, 0, false
	for i := range fields {
		if !message.EqualFold(fields[i].Name, "accept") {
			continue
		}
		asked = true
		rest := fields[i].Value
		for len(rest) > 0 {
			var item []byte
			item, rest, _ = bytes.Cut(rest, []byte(","))
			what, parameters, _ := bytes.Cut(item, []byte(";"))
			what = bytes.TrimSpace(what)
			specific := -1
			switch {
			case message.EqualFold(what, media):
				specific = 2
			case len(what) == len(kind)+2 && message.EqualFold(what[:len(kind)], kind) && string(what[len(kind):]) == "/*":
				specific = 1
			case string(what) == "*/*":
				specific = 0
			}
			if specific > best {
				best, quality = specific, qualityOf(parameters)
			}
		}
	}
	if !asked {
		return 1000
	}
	return quality
}

// qualityOf reads q of the parameters of a media range, in thousandths. What is no quality counts as 1.
func qualityOf(parameters []byte) int {
	for len(parameters) > 0 {
		var one []byte
		one, parameters, _ = bytes.Cut(parameters, []byte(";"))
		name, value, ok := bytes.Cut(bytes.TrimSpace(one), []byte("="))
		if !ok || !message.EqualFold(name, "q") {
			continue
		}
		whole, fraction, _ := bytes.Cut(value, []byte("."))
		if string(whole) != "0" {
			return 1000
		}
		q, unit := 0, 100
		for _, c := range fraction {
			if c-'0' < 10 && unit > 0 {
				q += int(c-'0') * unit
				unit /= 10
			}
		}
		return q
	}
	return 1000
}

func escapeHTML(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;").Replace(s)
}

// quoteJSON is a JSON string. Control characters do not come from the configuration.
func quoteJSON(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}
