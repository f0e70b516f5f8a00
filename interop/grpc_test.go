package interop_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// rpcs is a configuration before a server of gRPC without TLS and with it, and things that go wrong.
const rpcs = `
listeners:
  public:
    listen: $public
    protocol: https
    hosts:
      - names: [a.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        identity_headers: [alb]
        routes:
          - {match: {path: /grpc.testing.TestService/HalfDuplexCall}, allow: 'client.subject == "CN=nobody"', upstream: h2c}
          - {match: {path: /grpc.testing.TestService/*}, upstream: h2c}
          - {match: {path: /grpc.testing.UnimplementedService/*}, upstream: h2c}
          - {match: {path: /gone/*}, upstream: gone}
          - {match: {path: /silent/*}, upstream: silent}
      - names: [b.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients}
        routes: [{upstream: tls}]
      - names: [opt.test]
        certificate: {cert: server.pem, key: server.key}
        client_auth: {mode: require, trust_store: clients, on_failure: page}
        routes: [{upstream: h2c}]
upstreams:
  h2c:  {targets: ["http://$h2c"],  protocol_version: http2, timeouts: {keepalive: 1s}}
  tls:  {targets: ["https://$tls"], protocol_version: http2, timeouts: {keepalive: 1s}, tls: {server_name: api.internal, trust_store: internal, client_certificates: [{cert: edge.pem, key: edge.key}]}}
  gone: {targets: ["http://$gone"], protocol_version: http2}
  silent: {targets: ["http://$silent"], protocol_version: http2}
`

// caseFailed is what a case of the interop suite says when it fails, thrown by fatalLogger where grpclog would exit.
type caseFailed string

// fatalLogger makes failures of the interop suite failures of a test. It says nothing else.
type fatalLogger struct{}

func (fatalLogger) Info(...any)               {}
func (fatalLogger) Infoln(...any)             {}
func (fatalLogger) Infof(string, ...any)      {}
func (fatalLogger) Warning(...any)            {}
func (fatalLogger) Warningln(...any)          {}
func (fatalLogger) Warningf(string, ...any)   {}
func (fatalLogger) Error(...any)              {}
func (fatalLogger) Errorln(...any)            {}
func (fatalLogger) Errorf(string, ...any)     {}
func (fatalLogger) V(int) bool                { return false }
func (fatalLogger) Fatal(args ...any)         { panic(caseFailed(fmt.Sprint(args...))) }
func (fatalLogger) Fatalln(args ...any)       { panic(caseFailed(fmt.Sprintln(args...))) }
func (fatalLogger) Fatalf(f string, a ...any) { panic(caseFailed(fmt.Sprintf(f, a...))) }

func init() { grpclog.SetLoggerV2(fatalLogger{}) }

// grpcCases are the cases of grpc-go's interop client that need no cloud and no balancing of its own.
var grpcCases = map[string]func(context.Context, *grpc.ClientConn){
	"empty_unary":      onService(interop.DoEmptyUnaryCall),
	"large_unary":      onService(interop.DoLargeUnaryCall),
	"client_streaming": onService(interop.DoClientStreaming),
	"server_streaming": onService(interop.DoServerStreaming),
	"ping_pong":        onService(interop.DoPingPong),
	"empty_stream":     onService(interop.DoEmptyStream),
	"large_unary, compressed": func(ctx context.Context, c *grpc.ClientConn) {
		interop.DoLargeUnaryCall(ctx, testgrpc.NewTestServiceClient(c), grpc.UseCompressor(gzip.Name))
	},
	"ping_pong, compressed": func(ctx context.Context, c *grpc.ClientConn) {
		interop.DoPingPong(ctx, testgrpc.NewTestServiceClient(c), grpc.UseCompressor(gzip.Name))
	},
	"timeout_on_sleeping_server":  onService(interop.DoTimeoutOnSleepingServer),
	"cancel_after_begin":          onService(interop.DoCancelAfterBegin),
	"cancel_after_first_response": onService(interop.DoCancelAfterFirstResponse),
	"status_code_and_message":     onService(interop.DoStatusCodeAndMessage),
	"special_status_message":      onService(interop.DoSpecialStatusMessage),
	"custom_metadata":             onService(interop.DoCustomMetadata),
	"unimplemented_method":        interop.DoUnimplementedMethod,
	"unimplemented_service": func(ctx context.Context, c *grpc.ClientConn) {
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(c))
	},
}

func onService(f func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption)) func(context.Context, *grpc.ClientConn) {
	return func(ctx context.Context, c *grpc.ClientConn) { f(ctx, testgrpc.NewTestServiceClient(c)) }
}

// atClient reports whether a case ends at the client, which may be before it has sent anything.
func atClient(name string) bool {
	return name == "cancel_after_begin" || name == "timeout_on_sleeping_server"
}

// passesCase runs a case and returns what is wrong.
func passesCase(ctx context.Context, c *grpc.ClientConn, f func(context.Context, *grpc.ClientConn)) (err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case caseFailed:
			err = errors.New(string(v))
		default:
			panic(v)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	f(ctx, c)
	return nil
}

// many runs a case many times at once.
func many(t *testing.T, c *grpc.ClientConn, name string) {
	t.Helper()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if err := passesCase(t.Context(), c, grpcCases[name]); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
}

// rpcServer is grpc-go's interop server, and counts.
type rpcServer struct {
	testgrpc.TestServiceServer

	addr     string
	underway atomic.Int64 // calls
	calls    atomic.Int64
	received atomic.Int64 // bytes of messages that its streams took from clients
	sent     atomic.Int64 // and gave to grpc-go for them
	subject  atomic.Value // of the client, as we told it
	// slow makes StreamingInputCall wait for its end after the first message.
	slow atomic.Pointer[chan struct{}]
}

func newRPCServer(t *testing.T, conf *tls.Config, opts ...grpc.ServerOption) *rpcServer {
	t.Helper()
	s := &rpcServer{TestServiceServer: interop.NewTestServer()}
	if conf != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(conf)))
	}
	opts = append(opts,
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			defer s.begin(ctx)()
			return h(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			defer s.begin(ss.Context())()
			return h(srv, counted{ss, s})
		}))
	server := grpc.NewServer(opts...)
	testgrpc.RegisterTestServiceServer(server, s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	go server.Serve(l)
	t.Cleanup(server.Stop)
	return s
}

func (s *rpcServer) begin(ctx context.Context) func() {
	s.underway.Add(1)
	s.calls.Add(1)
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		s.subject.Store(strings.Join(md.Get("x-amzn-mtls-clientcert-subject"), " and "))
	}
	return func() { s.underway.Add(-1) }
}

func (s *rpcServer) StreamingInputCall(stream grpc.ClientStreamingServer[testgrpc.StreamingInputCallRequest, testgrpc.StreamingInputCallResponse]) error {
	if gate := s.slow.Load(); gate != nil {
		select {
		case <-*gate:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
	return s.TestServiceServer.StreamingInputCall(stream)
}

// counted counts the bytes of a stream's messages.
type counted struct {
	grpc.ServerStream
	s *rpcServer
}

func (c counted) RecvMsg(m any) error {
	err := c.ServerStream.RecvMsg(m)
	if in, ok := m.(*testgrpc.StreamingInputCallRequest); ok && err == nil {
		c.s.received.Add(int64(len(in.GetPayload().GetBody())))
	}
	return err
}

func (c counted) SendMsg(m any) error {
	err := c.ServerStream.SendMsg(m)
	if out, ok := m.(*testgrpc.StreamingOutputCallResponse); ok && err == nil {
		c.s.sent.Add(int64(len(out.GetPayload().GetBody())))
	}
	return err
}

// rpc connects grpc-go's client to addr with conf.
func rpc(t *testing.T, addr string, conf *tls.Config, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+addr, append(opts, grpc.WithTransportCredentials(credentials.NewTLS(conf)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// serveRPC runs countersign before two servers of gRPC.
func serveRPC(t *testing.T, p *pki) (b *balancer, plain, secure *rpcServer) {
	plain = newRPCServer(t, nil)
	secure = newRPCServer(t, mutual(issue(t, p.dir, "rpc-server", p.internal, newECDSA(t), forServer("api.internal")), p.internal))
	silent := serveGo(t, speaks("h2c"), nil, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	return serve(t, p, rpcs, map[string]string{"h2c": plain.addr, "tls": secure.addr, "silent": silent}), plain, secure
}

// TestGRPC runs grpc-go's interop client against its interop server through mutual TLS in front, and to the server without
// TLS and with mutual TLS.
func TestGRPC(t *testing.T) {
	p := newPKI(t)
	b, plain, secure := serveRPC(t, p)
	for host, server := range map[string]*rpcServer{"a.test": plain, "b.test": secure} {
		c := rpc(t, b.addr["public"], goConfig(p, host, p.alice))
		for _, name := range slices.Sorted(maps.Keys(grpcCases)) {
			t.Run(map[*rpcServer]string{plain: "h2c", secure: "h2 and mutual TLS"}[server]+"/"+name, func(t *testing.T) {
				mark, before := b.mark(), server.calls.Load()
				if err := passesCase(t.Context(), c, grpcCases[name]); err != nil {
					t.Error(err)
				}
				await(t, func() bool { return server.underway.Load() == 0 }) // it hears of cancellation
				if atClient(name) {
					return
				}
				if !strings.HasPrefix(name, "unimplemented") && server.calls.Load() == before {
					t.Error("the server was not called")
				}
				b.record(t, mark, "kind=request", "method=POST", "client_subject=CN=alice")
			})
		}
		if host == "a.test" && server.subject.Load() != "CN=alice" {
			t.Errorf("the server was told of client %q", server.subject.Load())
		}
		c.Close()
	}
	for _, who := range callers(p) {
		t.Run("client/"+who.name, func(t *testing.T) {
			mark, before := b.mark(), plain.calls.Load()
			c := rpc(t, b.addr["public"], goConfig(p, "a.test", who.cert))
			err := passesCase(t.Context(), c, grpcCases["empty_unary"])
			if who.good() {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), "code = Unavailable") || !strings.Contains(err.Error(), "remote error: tls: ") {
				t.Errorf("the client met %v", err)
			}
			b.noRequest(t, b.record(t, mark, "kind=handshake", "reason="+who.reason, "alpn=h2"))
			if plain.calls.Load() != before {
				t.Error("the server was reached")
			}
		})
	}
}

// TestGRPCItself runs the cases without us: against the server itself, where all pass, and against servers that do
// everything wrong, where none does.
func TestGRPCItself(t *testing.T) {
	p := newPKI(t)
	conf := mutual(p.server, p.root)
	good := newRPCServer(t, conf)
	wrong := newRPCServer(t, conf, grpc.StreamInterceptor(func(any, grpc.ServerStream, *grpc.StreamServerInfo, grpc.StreamHandler) error {
		return status.Error(codes.DataLoss, "no")
	}), grpc.UnaryInterceptor(func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
		return nil, status.Error(codes.DataLoss, "no")
	}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error { return s.SendMsg(&testgrpc.Empty{}) }))
	for _, name := range slices.Sorted(maps.Keys(grpcCases)) {
		t.Run(name, func(t *testing.T) {
			if err := passesCase(t.Context(), rpc(t, good.addr, goConfig(p, "a.test", p.alice)), grpcCases[name]); err != nil {
				t.Error(err)
			}
			if atClient(name) {
				return
			}
			if err := passesCase(t.Context(), rpc(t, wrong.addr, goConfig(p, "a.test", p.alice)), grpcCases[name]); err == nil {
				t.Error("passes against a server that does everything wrong")
			}
		})
	}
}

// TestGRPCRefusals: what we answer ourselves is a status of gRPC to its clients, and does not reach the server.
func TestGRPCRefusals(t *testing.T) {
	p := newPKI(t)
	b, plain, _ := serveRPC(t, p)
	invoke := func(t *testing.T, c *grpc.ClientConn, method string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return c.Invoke(ctx, method, &testgrpc.Empty{}, &testgrpc.Empty{})
	}
	alice := rpc(t, b.addr["public"], goConfig(p, "a.test", p.alice))
	for _, test := range []struct {
		name, method string
		conn         *grpc.ClientConn
		code         codes.Code
		record       []string
	}{
		{"no route", "/other.Service/Call", alice, codes.Unimplemented, []string{"reason=route_not_found"}},
		{"target gone", "/gone/Call", alice, codes.Unavailable, []string{"reason=upstream_connect_failed"}},
		{"denied", "/grpc.testing.TestService/HalfDuplexCall", alice, codes.PermissionDenied, []string{"reason=policy_denied"}},
		{"certificate of another CA, page", "/grpc.testing.TestService/EmptyCall", rpc(t, b.addr["public"], goConfig(p, "opt.test", p.mallory)), codes.PermissionDenied, []string{"reason=client_cert_untrusted"}},
		{"no certificate, page", "/grpc.testing.TestService/EmptyCall", rpc(t, b.addr["public"], goConfig(p, "opt.test", nil)), codes.PermissionDenied, []string{"reason=client_cert_missing"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			mark, before := b.mark(), plain.calls.Load()
			err := invoke(t, test.conn, test.method)
			if status.Code(err) != test.code || !strings.Contains(err.Error(), "reference: ") {
				t.Errorf("the client met %v; want %v and a reference", err, test.code)
			}
			b.record(t, mark, append(test.record, "kind=request")...)
			if plain.calls.Load() != before {
				t.Error("the server was reached")
			}
		})
	}
	t.Run("good after them, on the same connection", func(t *testing.T) {
		if err := invoke(t, alice, "/grpc.testing.TestService/EmptyCall"); err != nil {
			t.Error(err)
		}
	})

	// grpc-go's client ends its calls by itself when their time is over and drops the connection of servers that do strange
	// things; Go's client of HTTP shows what was answered.
	web := goClient(t, b, "a.test", p.alice)
	ask := func(t *testing.T, method string, message []byte, header ...string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "POST", b.url("public", "a.test", method), strings.NewReader(string(framed(message))))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("Te", "trailers")
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := web.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(body)
	}
	t.Run("form of our answers", func(t *testing.T) {
		resp, body := ask(t, "/other.Service/Call", nil)
		if resp.StatusCode != 200 || resp.ProtoMajor != 2 || resp.Header.Get("Grpc-Status") != "12" || resp.Header.Get("Content-Type") != "application/grpc" || body != "" || len(resp.Trailer) > 0 {
			t.Errorf("%+v, %q", resp, body)
		}
	})
	t.Run("answers of trailers only pass as such", func(t *testing.T) {
		resp, body := ask(t, "/grpc.testing.TestService/Nothing", nil)
		if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "12" || !strings.Contains(resp.Header.Get("Grpc-Message"), "unknown method Nothing") || body != "" || len(resp.Trailer) > 0 {
			t.Errorf("%+v, %q", resp, body)
		}
	})
	t.Run("trailers pass as trailers", func(t *testing.T) {
		resp, body := ask(t, "/grpc.testing.TestService/EmptyCall", nil)
		if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "" || resp.Trailer.Get("Grpc-Status") != "0" || body != "\x00\x00\x00\x00\x00" {
			t.Errorf("%+v, %q", resp, body)
		}
	})
	t.Run("deadline of a server that does not keep it", func(t *testing.T) {
		mark, began := b.mark(), time.Now()
		resp, body := ask(t, "/silent/Call", nil, "Grpc-Timeout", "300m")
		took := time.Since(began)
		if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "4" || body != "" {
			t.Errorf("%+v, %q", resp, body)
		}
		if took < 250*time.Millisecond || took > 12*time.Second {
			t.Errorf("took %v; want 300 ms", took)
		}
		b.record(t, mark, "kind=request", "path=/silent/Call", "reason=upstream_timeout")
	})
	t.Run("deadline of a server that keeps it", func(t *testing.T) {
		// StreamingOutputCallRequest{ResponseParameters: [{IntervalUs: 1000000}]}: the first response after 1 s. At the deadline
		// grpc-go resets the stream, and it is a race who is first.
		resp, body := ask(t, "/grpc.testing.TestService/StreamingOutputCall", []byte{0x12, 4, 0x10, 0xc0, 0x84, 0x3d}, "Grpc-Timeout", "300m")
		if code := resp.Header.Get("Grpc-Status"); resp.StatusCode != 200 || code != "4" && code != "14" || body != "" {
			t.Errorf("%+v, %q", resp, body)
		}
		await(t, func() bool { return plain.underway.Load() == 0 })
	})
	t.Run("others are answered in HTTP", func(t *testing.T) {
		resp, _ := ask(t, "/other.Service/Call", nil, "Content-Type", "application/json")
		if resp.StatusCode != 404 || resp.Header.Get("Grpc-Status") != "" {
			t.Errorf("%+v", resp)
		}
	})
}

// framed is a message of gRPC on the wire.
func framed(message []byte) []byte { return append([]byte{0, 0, 0, 0, byte(len(message))}, message...) }

// TestGRPCBackpressure: who reads slowly slows the sender down, and we hold next to nothing in between.
func TestGRPCBackpressure(t *testing.T) {
	const total, each = 64 << 20, 1 << 20
	const held = 8 << 20    // of a stream, on the way: windows on both sides and what kernels and grpc-go buffer
	const growth = 24 << 20 // of our memory: far less than what is sent
	p := newPKI(t)
	b, server, _ := serveRPC(t, p)
	// The client's windows do not grow: it is grpc-go's buffer else that takes everything.
	c := rpc(t, b.addr["public"], goConfig(p, "a.test", p.alice), grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(1<<20))
	client := testgrpc.NewTestServiceClient(c)
	many(t, c, "large_unary")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	measure := func(t *testing.T, f func()) {
		t.Helper()
		before := b.metric(t, "process_resident_memory_bytes")
		f()
		if now := b.metric(t, "process_resident_memory_bytes"); now-before > growth {
			t.Errorf("memory grew by %.1f MiB from %.1f", (now-before)/(1<<20), before/(1<<20))
		}
	}
	// still waits until n does not change any more.
	still := func(n *atomic.Int64) int64 {
		for was, same := int64(-1), 0; ; time.Sleep(20 * time.Millisecond) {
			if now := n.Load(); now != was {
				was, same = now, 0
			} else if same++; same == 15 {
				return now
			}
		}
	}
	t.Run("download", func(t *testing.T) {
		server.sent.Store(0)
		req := &testgrpc.StreamingOutputCallRequest{}
		for range total / each {
			req.ResponseParameters = append(req.ResponseParameters, &testgrpc.ResponseParameters{Size: each})
		}
		measure(t, func() {
			stream, err := client.StreamingOutputCall(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			got := 0
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got += len(m.GetPayload().GetBody())
				if got == each {
					if sent := still(&server.sent); sent-each > held {
						t.Errorf("the server could send %d bytes while its client read %d", sent, each)
					}
				}
			}
			if got != total {
				t.Errorf("%d bytes; want %d", got, total)
			}
		})
	})
	t.Run("upload", func(t *testing.T) {
		server.received.Store(0)
		gate := make(chan struct{})
		server.slow.Store(&gate)
		defer server.slow.Store(nil)
		payload := &testgrpc.StreamingInputCallRequest{Payload: interop.ClientNewPayload(testgrpc.PayloadType_COMPRESSABLE, each)}
		measure(t, func() {
			stream, err := client.StreamingInputCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var sent atomic.Int64
			failed := make(chan error, 1)
			go func() {
				for range total / each {
					if err := stream.Send(payload); err != nil {
						failed <- err
						return
					}
					sent.Add(each)
				}
				failed <- nil
			}()
			if n := still(&sent); n > held {
				t.Errorf("the client could send %d bytes while its server read none", n)
			}
			close(gate)
			if err := <-failed; err != nil {
				t.Fatal(err)
			}
			reply, err := stream.CloseAndRecv()
			if err != nil || reply.GetAggregatedPayloadSize() != total {
				t.Errorf("%v, %v", reply, err)
			}
		})
	})
	t.Run("others are served while one does not read", func(t *testing.T) {
		req := &testgrpc.StreamingOutputCallRequest{}
		for range total / each {
			req.ResponseParameters = append(req.ResponseParameters, &testgrpc.ResponseParameters{Size: each})
		}
		stop, end := context.WithCancel(ctx)
		defer end()
		for range 8 {
			stream, err := client.StreamingOutputCall(stop, req)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Header(); err != nil {
				t.Fatal(err)
			}
		}
		still(&server.sent)
		for range 20 {
			if err := passesCase(ctx, c, grpcCases["empty_unary"]); err != nil {
				t.Fatal(err)
			}
		}
		end()
		await(t, func() bool { return server.underway.Load() == 0 })
	})
}

// TestGRPCLeavesNothing: after calls of every kind, many at a time and cut short, we are as before.
func TestGRPCLeavesNothing(t *testing.T) {
	p := newPKI(t)
	b, server, _ := serveRPC(t, p)
	base := map[string]float64{}
	for _, what := range []string{"go_goroutines", "process_open_fds"} {
		base[what] = b.metric(t, what)
	}
	for range 4 {
		c := rpc(t, b.addr["public"], goConfig(p, "a.test", p.alice))
		for _, name := range []string{"large_unary", "ping_pong", "cancel_after_begin", "cancel_after_first_response", "timeout_on_sleeping_server"} {
			many(t, c, name)
		}
		// A connection that ends in the middle of 50 streams.
		for range 50 {
			if stream, err := testgrpc.NewTestServiceClient(c).FullDuplexCall(t.Context()); err != nil {
				t.Error(err)
			} else if err := stream.Send(&testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 1}}}); err != nil {
				t.Error(err)
			} else if _, err := stream.Recv(); err != nil {
				t.Error(err)
			}
		}
		c.Close()
	}
	await(t, func() bool { return server.underway.Load() == 0 })
	for what, before := range base {
		var now float64
		for range 200 {
			if now = b.metric(t, what); now <= before+2 { // that of the request for metrics comes and goes
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if now > before+2 {
			t.Errorf("%s: %.0f before, %.0f after", what, before, now)
		}
	}
}

// TestGRPCDrain: on SIGTERM a stream that is under way goes on to its end, the client is told to make no new ones on the
// connection, and new connections are not taken.
func TestGRPCDrain(t *testing.T) {
	p := newPKI(t)
	// Longer than all that a slow machine does here: the end is to come with the stream's.
	b := serve(t, p, rpcs, map[string]string{"h2c": newRPCServer(t, nil).addr, "drain": "1m"})
	c := rpc(t, b.addr["public"], goConfig(p, "a.test", p.alice))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := testgrpc.NewTestServiceClient(c).FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	say := func() error {
		if err := stream.Send(&testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 1000}}}); err != nil {
			return err
		}
		m, err := stream.Recv()
		if err == nil && len(m.GetPayload().GetBody()) != 1000 {
			err = fmt.Errorf("%d bytes", len(m.GetPayload().GetBody()))
		}
		return err
	}
	if err := say(); err != nil {
		t.Fatal(err)
	}
	mark := b.mark()
	pid := b.pid(t)
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 5 {
		time.Sleep(60 * time.Millisecond)
		if err := say(); err != nil {
			t.Fatalf("%v after SIGTERM the stream met %v", time.Since(began), err)
		}
	}
	short, end := context.WithTimeout(ctx, 300*time.Millisecond)
	defer end()
	if _, err := testgrpc.NewTestServiceClient(c).EmptyCall(short, &testgrpc.Empty{}); err == nil {
		t.Error("a new call was served while draining")
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v; want status OK", err)
	}
	b.record(t, mark, "kind=request", "reason=completed", "path=/grpc.testing.TestService/FullDuplexCall")
	for syscall.Kill(pid, 0) == nil && running(pid) {
		if time.Since(began) > 30*time.Second {
			t.Fatal("still running 30 s after SIGTERM")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// metric is the value of one of our metrics that has no labels.
func (b *balancer) metric(t *testing.T, name string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + b.addr["ops"] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			f, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// pid is the process that runs with our configuration.
func (b *balancer) pid(t *testing.T) int {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(text), binary+"\x00run\x00") && strings.Contains(string(text), b.pki.path("countersign.yaml")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			return pid
		}
	}
	t.Fatal("countersign is not running")
	return 0
}

// running reports whether a process has not ended; one that nobody waited for yet has.
func running(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(text), ") ")
	return err == nil && !strings.HasPrefix(after, "Z")
}
