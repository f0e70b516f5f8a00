package snapshot

import (
	"countersign/internal/config"
	"countersign/internal/message"
)

// mitigation compiles desync_mitigation, which concerns the reading of HTTP/1 requests only. A mode that config does not
// know is an error there, and the strictest here.
func (c *compiler) mitigation(path string, out *Listener, l *config.Listener) message.Mitigation {
	if l.DesyncMitigation != "" && out.Protocol != HTTPS && out.Protocol != HTTP && l.Protocol != "" {
		c.problem(path, "remove desync_mitigation", "desync_mitigation has no meaning on a listener of protocol %s", l.Protocol)
	}
	m, _ := message.ParseMitigation(l.DesyncMitigation)
	return m
}
