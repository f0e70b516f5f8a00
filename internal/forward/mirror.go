package forward

import (
	"context"
	"io"
	"time"

	"countersign/internal/message"
	"countersign/internal/upstream"
)

// copies bounds the copies under way in the whole process. What would be more is left out: nobody waits for a copy.
var copies = make(chan struct{}, 64)

// mirror sends a copy of a request to another pool, and forgets the answer. The client's exchange
// neither waits for it nor learns how it went; a body that is not there whole is not copied.
func (x *Exchange) mirror(request []byte, isHead bool) {
	pool := x.Pools.Pool(x.Edits.Mirror)
	if pool == nil || pool.HTTP2 {
		return
	}
	select {
	case copies <- struct{}{}:
	default:
		return
	}
	go func() {
		defer func() {
			<-copies
			if v := recover(); v != nil {
				pool.Panicked("panic in a copy of a request", v)
			}
		}()
		sendCopy(pool, request, isHead)
	}()
}

func sendCopy(pool *upstream.Pool, request []byte, isHead bool) {
	ctx, cancel := context.WithTimeout(context.Background(), pool.Connect)
	defer cancel()
	target, err := pool.Acquire(ctx)
	if err != nil {
		return
	}
	// One deadline for all of it, on the connection itself: no sweep looks at copies. So it is not used again.
	defer target.Discard()
	_ = target.Wire.SetDeadline(time.Now().Add(pool.Response + pool.Idle))
	if _, err := target.Write(request); err != nil {
		return
	}
	var resp message.Response
	for {
		if target.R.ReadResponse(&resp, isHead) != nil || resp.Status == 101 {
			return
		}
		if resp.Status >= 200 {
			break
		}
	}
	_, _ = io.CopyN(io.Discard, target.R.Body(&resp.Head, false), maxCopied)
}

// maxCopied bounds what is read of the answer to a copy.
const maxCopied = 1 << 20
