module countersign/interop

go 1.26.0
