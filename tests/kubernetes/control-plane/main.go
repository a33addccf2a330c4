// A Kubernetes control plane as one program: each of its parts is a subcommand.
//
// The parts are the projects' own commands, called as their own main functions call them; linked into one file, they share
// what they have in common (145 MB instead of 330).
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

var parts = map[string]func() int{
	"etcd": func() int { etcdmain.Main(os.Args); return 0 },
	"kube-apiserver": func() int {
		return cli.Run(apiserver.NewAPIServerCommand())
	},
	"kube-controller-manager": func() int {
		return cli.Run(manager.NewControllerManagerCommand())
	},
	"kubectl": func() int {
		err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand())
		if err == nil {
			return 0
		}
		fmt.Fprintln(os.Stderr, err)
		return 1
	},
}

func main() {
	if len(os.Args) > 1 {
		if part, ok := parts[os.Args[1]]; ok {
			os.Args = os.Args[1:]
			os.Exit(part())
		}
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range parts {
			if !yield(name) {
				return
			}
		}
	})
	fmt.Fprintf(os.Stderr, "usage: control-plane %s ARGUMENTS\n", strings.Join(names, "|"))
	os.Exit(2)
}
