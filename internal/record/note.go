package record

import "time"

// Note writes a line about something that was done to the program and is neither a connection nor a request, as texts by
// name, to every output whose lines are JSON; the other formats have no place for it. No setting leaves it out.
func (b *Book) Note(kind string, texts ...[2]string) {
	now := time.Now()
	for _, o := range *b.outputs.Load() {
		if o.Format != JSON {
			continue
		}
		o.line(func(b []byte) []byte {
			if o.Place == ToSyslog {
				b = o.Syslog.header(b, now, severityWarning, kind)
			}
			b = append(b, `{"time":"`...)
			b = now.UTC().AppendFormat(b, albTime)
			b = append(b, '"')
			b = text(b, "kind", kind)
			for _, t := range texts {
				b = text(b, t[0], t[1])
			}
			return append(b, '}', '\n')
		})
	}
}
