package otlp

import (
	"maps"
	"net/http/httptest"
	"testing"

	"countersign/internal/identity"
)

// TestEnvironment: what the environment says to programs with OpenTelemetry changes nothing here.
func TestEnvironment(t *testing.T) {
	sent := func(t *testing.T) (service map[string]string, attributes int, kind, compression, header string) {
		r := receive(t, (*httptest.Server).Start)
		e, _ := newExporter(t)
		e.Use(settings(r))
		e.Take(request(identity.Client{}))
		spans := r.wait(t, 2)
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.service, len(spans[1].Attributes), r.header.Get("Content-Type"), r.header.Get("Content-Encoding"), r.header.Get("X-Other")
	}
	service, attributes, kind, compression, _ := sent(t)
	if service["service.name"] != "countersign" || attributes < 5 {
		t.Fatalf("%v, %d attributes", service, attributes)
	}
	other := receive(t, (*httptest.Server).Start)
	for name, value := range map[string]string{
		"OTEL_RESOURCE_ATTRIBUTES": "secret.of=another,service.name=evil,host.name=evil", "OTEL_SERVICE_NAME": "evil",
		"OTEL_EXPORTER_OTLP_ENDPOINT": other.URL, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": other.URL, "OTEL_EXPORTER_OTLP_HEADERS": "X-Other=evil",
		"OTEL_EXPORTER_OTLP_COMPRESSION": "none", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_EXPORTER_OTLP_INSECURE": "false", "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
		"OTEL_TRACES_SAMPLER": "always_off", "OTEL_SDK_DISABLED": "true", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "1",
		"HTTP_PROXY": other.URL, "ALL_PROXY": other.URL,
	} {
		t.Setenv(name, value)
	}
	gotService, gotAttributes, gotKind, gotCompression, header := sent(t)
	if !maps.Equal(gotService, service) {
		t.Errorf("the service is %v, and without an environment %v", gotService, service)
	}
	if gotAttributes != attributes || gotKind != kind || gotCompression != compression || header != "" {
		t.Errorf("%d attributes, %s, %s, %q; expected %d, %s, %s and no header of others", gotAttributes, gotKind, gotCompression, header, attributes, kind, compression)
	}
	if len(other.taken()) > 0 {
		t.Error("another collector was told")
	}
}
