//go:build tools

// Package tools names what is built from here, so that `go mod tidy` keeps every sum that the
// builds need. critest is a test binary: the imports of its test file are repeated here, because
// sums of another module's tests are otherwise dropped.
package tools

import (
	_ "github.com/onsi/ginkgo/v2"
	_ "github.com/onsi/ginkgo/v2/types"
	_ "github.com/onsi/gomega"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/common"
	_ "sigs.k8s.io/cri-tools/pkg/framework"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
