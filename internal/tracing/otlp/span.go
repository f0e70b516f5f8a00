package otlp

import (
	"context"
	"encoding/hex"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"countersign/internal/reason"
	"countersign/internal/tracing"
)

// span is a copy of what is known of a traced request. Texts are as they came; they are cleaned when they are sent.
type span struct {
	trace                [16]byte
	parent, id, target   [8]byte
	continued            bool
	state                string
	start, end           time.Time
	asked, answered      time.Time
	sent, headed         time.Duration // after start; 0 for never
	method, host, path   string
	status, targetStatus int
	reason               reason.Reason
	upstream, address    string
	retried, reused      bool
	in, out              int64
	rule                 int
	major                uint8
	client, peer         string
	listener, ref        string
	tls, sni             string
	subject, issuer      string
	serial               string
	fingerprint          string
}

// The longest texts of a span, in bytes.
const (
	maxName = 512
	maxPath = 1024
)

func copyOf(e *tracing.End) *span {
	t, r := e.Span, e.Request
	s := &span{trace: t.Trace, parent: t.Parent, id: t.ID, target: t.Target, continued: t.Continued, state: string(t.State),
		start: r.Start, end: time.Now(), asked: t.Asked, answered: t.Answered, sent: r.SentTime, headed: r.TargetTime,
		method: string(r.Method), host: string(r.Host), path: string(r.Path[:min(len(r.Path), maxPath)]),
		status: r.Status, targetStatus: r.TargetStatus, reason: r.Reason, upstream: r.Upstream, address: r.Target, retried: r.Retried, reused: r.Reused,
		in: r.BytesIn, out: r.BytesOut, rule: r.Rule, major: r.Major, client: r.Client, peer: e.Peer,
		listener: e.Listener, ref: e.Ref, tls: e.TLS, sni: e.SNI}
	if id, verified := e.Client.Identity(); verified && t.Identity {
		sum := id.Fingerprint()
		s.subject, s.issuer, s.serial, s.fingerprint = cut(id.Subject()), cut(id.Issuer()), cut(id.SerialHex()), hex.EncodeToString(sum[:])
	}
	return s
}

// cut bounds a text. What is kept does not hold on to the rest.
func cut(s string) string {
	if len(s) <= maxName {
		return s
	}
	return strings.Clone(s[:maxName]) + "..."
}

// plain makes a text fit for a span and whoever shows it: valid UTF-8, without control characters, which OTLP and terminals
// would choke on.
func plain(s string) string {
	ok := func(c byte) bool { return c >= ' ' && c < 0x7f }
	bad := -1
	for i := range len(s) {
		if !ok(s[i]) {
			bad = i
			break
		}
	}
	if bad < 0 {
		return s
	}
	b := []byte(s[:bad])
	for i := bad; i < len(s); i++ {
		if c := s[i]; ok(c) {
			b = append(b, c)
		} else {
			const digits = "0123456789abcdef"
			b = append(b, '\\', 'x', digits[c>>4], digits[c&15])
		}
	}
	return string(b)
}

// maker makes spans of OpenTelemetry: its SDK has no other way to them than to begin and end each. It is used by one
// goroutine, and gives them the ids that targets were told.
type maker struct {
	resource *resource.Resource
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	trace    trace.TraceID
	next     trace.SpanID
	made     []sdk.ReadOnlySpan
}

func newMaker(r *resource.Resource) *maker {
	m := &maker{resource: r}
	m.provider = sdk.NewTracerProvider(sdk.WithIDGenerator(m), sdk.WithSampler(sdk.AlwaysSample()), sdk.WithSpanProcessor(gatherer{m}),
		sdk.WithRawSpanLimits(sdk.SpanLimits{AttributeValueLengthLimit: -1, AttributeValueDepthLimit: -1, AttributeCountLimit: 64, EventCountLimit: 8, LinkCountLimit: 1,
			AttributePerEventCountLimit: 8, AttributePerLinkCountLimit: 8}))
	m.tracer = m.provider.Tracer("countersign")
	return m
}

// NewIDs implements sdk.IDGenerator.
func (m *maker) NewIDs(context.Context) (trace.TraceID, trace.SpanID) { return m.trace, m.next }

// NewSpanID implements sdk.IDGenerator.
func (m *maker) NewSpanID(context.Context, trace.TraceID) trace.SpanID { return m.next }

// gatherer keeps spans that have ended.
type gatherer struct{ m *maker }

func (gatherer) OnStart(context.Context, sdk.ReadWriteSpan) {}
func (g gatherer) OnEnd(s sdk.ReadOnlySpan)                 { g.m.made = append(g.m.made, ours{s, g.m.resource}) }
func (gatherer) Shutdown(context.Context) error             { return nil }
func (gatherer) ForceFlush(context.Context) error           { return nil }

// ours is a span of our resource. The SDK's own has what the environment says in it, whatever it is given.
type ours struct {
	sdk.ReadOnlySpan
	resource *resource.Resource
}

// Resource implements sdk.ReadOnlySpan.
func (o ours) Resource() *resource.Resource { return o.resource }

// spans makes the spans of a batch. They are valid until the next call.
func (m *maker) spans(batch []*span) []sdk.ReadOnlySpan {
	clear(m.made)
	m.made = m.made[:0]
	for _, s := range batch {
		m.add(s)
	}
	return m.made
}

// add makes the span of a request, and that of its exchange with a target. Names of attributes are those of OpenTelemetry's
// semantic conventions where those have any.
func (m *maker) add(s *span) {
	ctx := context.Background()
	if s.continued {
		conf := trace.SpanContextConfig{TraceID: s.trace, SpanID: s.parent, TraceFlags: trace.FlagsSampled, Remote: true}
		conf.TraceState, _ = trace.ParseTraceState(s.state) // one that cannot be read has gone on to the target, and is no more
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(conf))
	}
	m.trace, m.next = s.trace, s.id
	ctx, server := m.tracer.Start(ctx, s.name(), trace.WithTimestamp(s.start), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(s.attributes()...))
	if s.status >= 500 || s.status == 0 && !s.reason.Good() {
		server.SetStatus(codes.Error, s.reason.String())
	}
	if !s.asked.IsZero() && s.upstream != "" {
		m.next = s.target
		_, client := m.tracer.Start(ctx, s.name(), trace.WithTimestamp(s.asked), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(s.exchange()...))
		if s.sent > 0 {
			client.AddEvent("request sent", trace.WithTimestamp(s.start.Add(s.sent)))
		}
		if s.headed > 0 {
			client.AddEvent("response begun", trace.WithTimestamp(s.start.Add(s.headed)))
		}
		if s.targetStatus >= 400 || s.targetStatus == 0 && !s.reason.Good() {
			client.SetStatus(codes.Error, s.reason.String())
		}
		end := s.answered
		if end.IsZero() {
			end = s.end
		}
		client.End(trace.WithTimestamp(end))
	}
	server.End(trace.WithTimestamp(s.end))
}

// methods are those that names of spans may have: a name for each word that a stranger can think of would be of no use.
var methods = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}

func (s *span) name() string {
	if slices.Contains(methods, s.method) {
		return s.method
	}
	return "HTTP"
}

// list is attributes in the making; empty texts are left out.
type list []attribute.KeyValue

func (l *list) text(key, value string) {
	if value != "" {
		*l = append(*l, attribute.String(key, plain(value)))
	}
}

func (l *list) number(key string, n int64) { *l = append(*l, attribute.Int64(key, n)) }

// place adds an address, with its port where it has one.
func (l *list) place(host, port, address string) {
	name, number, err := net.SplitHostPort(address)
	if err != nil {
		l.text(host, address)
		return
	}
	l.text(host, name)
	if n, err := strconv.ParseUint(number, 10, 16); err == nil {
		l.number(port, int64(n))
	}
}

func (l *list) request(s *span) {
	if l.text("http.request.method", s.name()); s.name() == "HTTP" {
		*l = (*l)[:0]
		l.text("http.request.method", "_OTHER")
		l.text("http.request.method_original", s.method)
	}
}

func (s *span) attributes() []attribute.KeyValue {
	var l list
	l.request(s)
	scheme := "http"
	if s.tls != "" {
		scheme = "https"
	}
	l.text("url.scheme", scheme)
	l.text("url.path", s.path)
	l.place("server.address", "server.port", s.host)
	l.place("network.peer.address", "network.peer.port", s.peer)
	if s.client == "" {
		l.place("client.address", "client.port", s.peer)
	} else {
		l.place("client.address", "client.port", s.client)
	}
	if s.major == 2 {
		l.text("network.protocol.version", "2")
	} else {
		l.text("network.protocol.version", "1.1")
	}
	if s.status != 0 {
		l.number("http.response.status_code", int64(s.status))
	}
	if !s.reason.Good() {
		l.text("error.type", s.reason.String())
	}
	l.number("http.request.body.size", s.in)
	l.number("http.response.body.size", s.out)
	if version, ok := strings.CutPrefix(s.tls, "TLS "); ok {
		l.text("tls.protocol.version", version)
	}
	l.text("tls.client.server_name", s.sni)
	l.text("tls.client.subject", s.subject)
	l.text("tls.client.issuer", s.issuer)
	l.text("tls.client.hash.sha256", strings.ToUpper(s.fingerprint))
	l.text("countersign.client.serial", s.serial)
	l.text("countersign.reason", s.reason.String())
	l.text("countersign.listener", s.listener)
	l.text("countersign.ref", s.ref)
	if s.rule > 0 {
		l.number("countersign.route", int64(s.rule))
	}
	l.text("countersign.upstream", s.upstream)
	return l
}

// exchange are the attributes of the exchange with a target.
func (s *span) exchange() []attribute.KeyValue {
	var l list
	l.request(s)
	l.place("server.address", "server.port", s.address)
	if s.targetStatus != 0 {
		l.number("http.response.status_code", int64(s.targetStatus))
	}
	if s.reason.Row().Fault == reason.FaultUpstream {
		l.text("error.type", s.reason.String())
	}
	l.text("countersign.upstream", s.upstream)
	l = append(l, attribute.Bool("countersign.retried", s.retried), attribute.Bool("countersign.connection_reused", s.reused))
	return l
}
