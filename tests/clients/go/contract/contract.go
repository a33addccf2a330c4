// Package contract is what all programs do alike: it prints a line for each step and keeps a pool as it is told. See
// ../../README.md.
package contract

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	PoolSize = 4
	BigRows  = 100_000
	BigValue = 16 << 20
	Copied   = 10_000
)

var (
	Client = os.Getenv("CLIENT")
	URL    = os.Getenv("DATABASE_URL")
	Sleep  = "SELECT pg_sleep(600) -- " + Client
	// IsSleeping has the name of the client, of which there is one in each world.
	IsSleeping = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()" +
		" AND starts_with(query, '" + Sleep + "')"
)

// Value runs a statement and returns the one value of its result.
type Value func(sql string) (int64, error)

type Pool interface {
	// With takes a connection of the pool, and gives it back behind during.
	With(during func(Value) error) error
	Close()
}

type Step struct {
	Name string
	Run  func() error
}

// Run does the steps, then keeps the pool.
func Run(steps []Step, pool Pool) {
	for _, step := range steps {
		orFail(step.Name, step.Run())
		say("ok " + step.Name)
	}
	useAll(pool)
	say("ok pool")
	var busy *workers
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() && commands.Text() != "end" {
		switch command := commands.Text(); command {
		case "busy":
			busy = start(pool)
			say("ok busy")
		case "idle":
			say(fmt.Sprintf("ok idle %d", busy.stop()))
		case "use":
			useAll(pool)
			say("ok use")
		default:
			orFail(command, fmt.Errorf("unknown command"))
		}
	}
	pool.Close()
	say("ok end")
}

type workers struct {
	over    atomic.Bool
	queries atomic.Int64
	all     sync.WaitGroup
}

// start returns once each worker has had an answer.
func start(pool Pool) *workers {
	workers := new(workers)
	var begun sync.WaitGroup
	begun.Add(PoolSize)
	for range PoolSize {
		workers.all.Go(func() {
			for number := 0; !workers.over.Load(); number++ {
				orFail("busy", pool.With(func(value Value) error {
					return is100(value)
				}))
				workers.queries.Add(1)
				if number == 0 {
					begun.Done()
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	begun.Wait()
	return workers
}

func (workers *workers) stop() int64 {
	workers.over.Store(true)
	workers.all.Wait()
	return workers.queries.Load()
}

// useAll takes all connections of the pool at the same time.
func useAll(pool Pool) {
	var together, all sync.WaitGroup
	together.Add(PoolSize)
	for range PoolSize {
		all.Go(func() {
			orFail("use", pool.With(func(value Value) error {
				together.Done()
				together.Wait()
				return is100(value)
			}))
		})
	}
	all.Wait()
}

func is100(value Value) error {
	count, err := value("SELECT count(*) FROM t")
	if err != nil {
		return err
	}
	return Expect(count, int64(100))
}

// Expect is an error where they are not equal.
func Expect(found, wanted any) error {
	if !reflect.DeepEqual(found, wanted) {
		return fmt.Errorf("%v where %v is right", found, wanted)
	}
	return nil
}

func say(line string) {
	fmt.Println(line)
}

// orFail ends the program, whatever else it does.
func orFail(where string, err error) {
	if err != nil {
		say("failed " + where + ": " + strings.ReplaceAll(err.Error(), "\n", " "))
		os.Exit(1)
	}
}
