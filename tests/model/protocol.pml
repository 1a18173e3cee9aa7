/* One block of one region, all who write it or hand it on, and one reader: docs/PROTOCOL.md in Promela.
 *
 * Property: a copy that the checks let pass holds the bytes of its entry's key, and so does a block that an heir is told it
 * has. Every write has a key of its own, numbered from 1; bytes come and go in two halves, so that torn copies exist, and a
 * half is known by the key that wrote it.
 *
 *   (default)      a worker's region: its owner, kvmd, kvmd's restart, an heir or a newcomer in its row
 *   -DHOST_CACHE   a slot of the host cache: kvmd owns it, two writers are granted it in turn
 *
 * -DNAME takes out the defence or the assumption (ASSUME_…) that stands under #ifndef NAME here, or adds what it prevents.
 * check_model.py runs all of them and knows which must end in a counterexample. -DNEVER=… and -DNEVER_COPIED=… claim that
 * no copy is ever so. Readers change nothing for anybody, so one is enough, and when it has read all is `over`.
 */
#define OTHER 0                      /* bytes of no key: what the memory is used for once it is no region any more */
#define WRITES(p) (2 - (p))          /* a process begins; the first owner's keys are 1 and 2, the second process's is 3 */
#define KEY(p, n) (2 * (p) + (n))
#define WRITER(k) ((k) / 3)          /* the process that writes a key */

byte mem[4];                         /* the block's bytes; [2] and [3]: of a newcomer's memory */
byte gen[2];                         /* its generation; [1]: in another table than the first owner's */
byte memory[2], table[2];            /* which of them a process's region is: 0 or 1 */
byte row;                            /* the table whose region has the row; its region_epoch, as it were */
byte entry[2];                       /* the key of the index entry: [0] in the first registry, [1] in a restarted kvmd's */
byte registry;                       /* the one that kvmd fills; the other stays readable */
byte odd[4];                         /* [key]: the odd value that its write owns; its entry says this + 1 */
bool sent[4];                        /* [key]: its record is on the way to kvmd: may arrive late, more than once, or never */
bool alive[2], ended[2];             /* a process executes; its pidfd says that it has ended */
bool adopted, found, over;

#define CPU(p) (alive[p] && !over)   /* when a step of its own can happen; */
#ifndef ASSUME_PIDFD_WAITS_FOR_GPU   /* and when a store of its GPU's can land: also after its last own step */
#define LANDS(p) (!ended[p] && !over)
#else
#define LANDS(p) (!over)
#endif

inline begin_write(p, k) {           /* BeginWrite: one compare-exchange */
#ifndef ODD_NOT_ADVANCED
  odd[k] = (gen[table[p]] + 1) | 1;
#else
  odd[k] = gen[table[p]] | 1;
#endif
  gen[table[p]] = odd[k]
}

inline finish_write(p, k, readable) { /* FinishWrite: one compare-exchange */
#ifndef FINISH_WITHOUT_CAS
  readable = (gen[table[p]] == odd[k]);
#else
  readable = true;
#endif
  if :: readable -> gen[table[p]] = odd[k] + 1 :: else fi
}

#define SHOWS(t, k) (gen[t] == odd[k] + 1)

/* ---- Importer: a CPU thread from end to end, or checks of the CPU around a GPU's copy in stream order ----------------- */

active proctype Importer() {
  byte k, at, half[2];
  bool from_first;
  atomic {                           /* Find: whichever registry it has mapped; a match may be kept for as long as one likes */
    !over;
    if
    :: entry[0] != 0 -> k = entry[0]; from_first = true
    :: entry[1] != 0 -> k = entry[1]
    fi;
    found = true;
    at = row;                        /* the mapping of the entry's row, if that is the entry's region still */
#ifndef ROW_WITHOUT_EPOCH
    if :: at == table[WRITER(k)] :: else -> goto done fi
#endif
  }
#ifndef NO_FIRST_CHECK
  if :: SHOWS(at, k) :: else -> goto done fi;
#endif
  if                                 /* the copy; the pieces of a block are in no order */
  :: half[0] = mem[2 * memory[at]]; half[1] = mem[2 * memory[at] + 1]
  :: half[1] = mem[2 * memory[at] + 1]; half[0] = mem[2 * memory[at]]
  fi;
#ifdef NEVER_COPIED
  assert(!(NEVER_COPIED));
#endif
#ifndef NO_SECOND_CHECK
  if :: SHOWS(at, k) :: else -> goto done fi;
#endif
  assert(half[0] == k && half[1] == k); /* validated */
#ifdef NEVER
  assert(!(NEVER));
#endif
done:
  atomic { over = true; k = 0; at = 0; half[0] = 0; half[1] = 0 }
}

#ifdef FORK_KEEPS_MAPPING            /* no MADV_DONTFORK: a child outlives the process, and nobody waits for it */
active proctype Child() { mem[0] = OTHER }
#endif

#ifndef HOST_CACHE
/* ---- Owner, and whoever comes after it: a scheduler that begins writes, streams and workers that end them ------------- */

byte landed[2];                      /* writes of this process whose bytes are complete, in the order of their beginning */

inline publish(p, k) {               /* where the compare-exchange fails, another write has begun: nothing is published */
  atomic { CPU(p) && odd[k] != 0; finish_write(p, k, readable) }
  if :: atomic { readable && CPU(p) && !found; sent[k] = true } :: !readable fi
}

proctype Write(byte p; byte n; byte k) {
  bool readable;
#ifdef FINISH_BEFORE_LANDED
  publish(p, k);
#endif
#ifndef ASSUME_WRITES_LAND_IN_ORDER
  atomic { LANDS(p) && landed[p] == n - 1; mem[2 * memory[p]] = k }
#else
  atomic { LANDS(p); mem[2 * memory[p]] = k }
#endif
  atomic { LANDS(p); mem[2 * memory[p] + 1] = k; landed[p]++ }
#ifndef FINISH_BEFORE_LANDED
  publish(p, k)
#endif
}

proctype Scheduler(byte p) {
  byte n;
  do
  :: atomic {
       CPU(p) && n < WRITES(p);      /* reuses the block, whatever has become of the write before */
       n++;
#ifndef OVERWRITE_BEFORE_BEGIN
       begin_write(p, KEY(p, n));
       run Write(p, n, KEY(p, n))
     }
#else
       run Write(p, n, KEY(p, n))
     }
     atomic { CPU(p); begin_write(p, KEY(p, n)) }
#endif
  :: CPU(p) && p == 0 -> break
  od;
  /* Unregister, or any other end of ownership. kvmd need not be there; if it is, it may still take this region for one that
     waits for its owner, or for an heir. */
#ifndef NO_ODD_AT_UNREGISTER
#ifndef UNREGISTER_SKIPS_ODD
  atomic { CPU(p); begin_write(p, 0) }
#else
  atomic { CPU(p); if :: gen[table[p]] % 2 == 0 -> begin_write(p, 0) :: else fi }
#endif
#endif
  atomic { CPU(p); mem[2 * memory[p]] = OTHER }
  atomic { CPU(p); mem[2 * memory[p] + 1] = OTHER }
}

active proctype FirstOwner() {
  atomic { alive[0] = true; run Scheduler(0) }
  atomic { !over; alive[0] = false } /* killed between any two steps, or never */
  atomic { !over; ended[0] = true }
}

active proctype Heir() {
  byte k, half[2];
  atomic {
    if
#ifndef ADOPT_BEFORE_DEATH
    :: ended[0] && !over ->
#else
    :: !over ->                      /* its connection has ended, and that is all */
#endif
       adopted = true;               /* its memory and its table, and what the index knows of them */
#ifdef NEW_TABLE_AT_ADOPTION
       table[1] = 1; row = 1;
#endif
#ifdef GENERATIONS_START_OVER
       gen[0] = 0;
#endif
       if
       :: !found && entry[registry] != 0 && SHOWS(0, entry[registry]) -> k = entry[registry]
       :: true
       fi
    :: !over ->                      /* a newcomer instead: the first region is withdrawn, and its row is free again */
       table[1] = 1; memory[1] = 1; row = 1
    fi;
    alive[1] = true
  }
  if
  :: k == 0 -> run Scheduler(1)
  :: else ->                         /* it reads what it has been given */
     half[0] = mem[0];
     half[1] = mem[1];
     assert(half[0] == k && half[1] == k); /* adopted */
#ifdef NEVER_ADOPTED
     assert(!(NEVER_ADOPTED));
#endif
     over = true
  fi
}

/* ---- kvmd: records become entries of the registry that it fills ------------------------------------------------------- */

active proctype Kvmd() {
  byte k;
  do
  :: atomic {
       if :: sent[1] -> k = 1 :: sent[2] -> k = 2 :: sent[3] -> k = 3 fi;
       !found && !over && SHOWS(table[WRITER(k)], k);
       entry[registry] = k;          /* stale from now on, or already: the same. A record that is sent again comes here, too */
       k = 0
     }
  :: atomic { registry == 0 && !found && !over; registry = 1 } /* killed, and another one starts */
  od
}

#else
/* ---- a slot of the host cache: kvmd grants it, a writer copies a block to it and answers ------------------------------ */

bool granted[2], answered[2];        /* [writer]; after its answer nothing of its copy comes any more */

proctype Writer(byte p) {
  granted[p];
  atomic { LANDS(p); mem[0] = p + 1 }
  atomic { LANDS(p); mem[1] = p + 1 }
  atomic { CPU(p); answered[p] = true }
}

proctype WriterProcess(byte p) {
  alive[p] = true;
  run Writer(p);
  alive[p] = false;
  ended[p] = true
}

active proctype HostCache() {
  byte p, k;
  bool readable, held;
  run WriterProcess(0); run WriterProcess(1);
  do
  :: p < 2 ->
     k = p + 1; held = false;
#ifndef EVICTED_STAYS_READABLE
     atomic { true; begin_write(0, k) }
#else
     odd[k] = (gen[0] + 1) | 1;
#endif
     granted[p] = true;
     if
     :: answered[p] ->
#ifdef EVICTED_STAYS_READABLE
        gen[0] = odd[k];
#endif
        atomic { true; finish_write(0, k, readable) }
        if
        :: entry[registry] = k; held = true
        :: registry == 0 -> registry = 1; begin_write(0, 0) /* kvmd's restart: readable, and in no index */
        fi
     :: registry == 0 -> registry = 1 /* kvmd's restart; the slot is odd: a writer may be at it */
#ifdef RESTART_FREES_SLOTS
        ; answered[p] = true
#endif
     :: true                         /* not answered in time, or the client has left: the grant is void */
     fi;
     if
     :: held && registry == 0 ->     /* kvmd's restart: entries of the first registry are restored */
        registry = 1;
        entry[1] = k
     :: true
     fi;
     if
     :: held ->                      /* evicted, sooner or later */
#ifndef EVICTED_STAYS_READABLE
        atomic { true; begin_write(0, 0) }
#endif
        entry[registry] = 0
#ifndef SLOT_REUSED_BEFORE_WRITER_GONE
     :: !held -> answered[p] || ended[p]
#else
     :: !held
#endif
     fi;
     p++
  od
}
#endif
