# What the launchers share: messages, dry runs, the program's flags, and when a run starts again.
# shellcheck shell=bash disable=SC2034 # Some variables serve only those that source this.

dry_run=${DRY_RUN:-0} # 1: print every command, run none
max_restarts=5        # starts in a row without a new checkpoint
backoff=10            # seconds before the first of them; doubled each time, up to 300
stopping=0            # 1: somebody asked the run to stop
failures=0
last_checkpoint=
# A virtual environment in the repository goes first, as the README sets it up.
python=python3
if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; fi

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# Ends the script, before anything was started, for a reason that the user can mend.
refuse() {
  say "$*; --help says more"
  exit 2
}

# require_number NAME VALUE: refuses what is not a whole number.
require_number() {
  case $2 in '' | *[!0-9]*) refuse "$1 is '$2'; allowed: whole numbers" ;; esac
}

# Prints the arguments as one line that a shell reads as the same arguments.
quoted() {
  local word line='' quote=\' escaped=\'\\\'\'
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_@%+=:,./-]*) word=$quote${word//$quote/$escaped}$quote ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

run() {
  if ((dry_run)); then quoted "$@"; else "$@"; fi
}

# program_flag NAME FLAGS...: prints the value of --NAME; the last one counts, as for the program.
program_flag() {
  local name=$1 value=''
  shift
  while (($#)); do
    case $1 in
      "--$name="*) value=${1#*=} ;;
      "--$name") value=${2-} ;;
    esac
    shift
  done
  printf '%s' "$value"
}

# read_program_flags FLAGS...: sets `workdir`; refuses what the program would refuse only later.
read_program_flags() {
  local config
  config=$(program_flag config "$@")
  workdir=$(program_flag workdir "$@")
  workdir=${workdir%/}
  if [[ $config ]]; then
    [[ -f ${config%%:*} || -f configs/${config%%:*}.py ]] ||
      refuse "--config is '$config', which is neither a file in $PWD nor a name in configs/"
  else
    holds_run || refuse "no --config among the program's flags, which come after --, and" \
      "--workdir is '$workdir', which holds no run to go on with"
  fi
  [[ $workdir ]] || refuse "no --workdir among the program's flags, which come after --"
}

# Whether the work directory has a saved configuration; of a bucket the program says so itself.
holds_run() {
  case $workdir in
    *://*) ;;
    *) [[ -e $workdir/config.json ]] ;;
  esac
}

# The program writes this file as its last act, and nothing else does.
is_done() {
  case $workdir in
    gs://*) gcloud storage ls "$workdir/done.json" >/dev/null 2>&1 ;;
    *) [[ -e $workdir/done.json ]] ;;
  esac
}

# Prints the step of the newest complete checkpoint, if there is one.
latest_checkpoint() {
  {
    case $workdir in
      gs://*) gcloud storage ls "$workdir/checkpoints/" ;;
      *) ls "$workdir/checkpoints" ;;
    esac 2>/dev/null || true
  } | sed -n -e 's|/$||' -e 's|.*/||' -e '/^[0-9][0-9]*$/p' | sort -n | tail -n 1
}

# Whether a run that ended too early is to start again. Waits before it says yes.
may_restart() {
  local latest pause
  latest=$(latest_checkpoint)
  if [[ $latest != "$last_checkpoint" ]]; then
    last_checkpoint=$latest failures=0
  fi
  failures=$((failures + 1))
  if ((failures > max_restarts)); then
    say "gives up: no new checkpoint in $failures starts"
    return 1
  fi
  pause=$((backoff << (failures < 6 ? failures - 1 : 5)))
  pause=$((pause < 300 ? pause : 300))
  say "starts again in $pause s, from ${latest:+step }${latest:-the beginning}" \
    "($failures of $max_restarts without a new checkpoint)"
  # In the background, because a trap runs only when a foreground command has ended.
  sleep "$pause" >/dev/null 2>&1 &
  wait $! || kill $! 2>/dev/null || true
  ((!stopping))
}

# Calls `start_run`, which the caller defines and which returns the program's exit code, until there
# is nothing more to do. Returns 0: done, or stopped on request; 2: refused; 3: not finite; 1: given up.
keep_going() {
  local status
  last_checkpoint=$(latest_checkpoint)
  while true; do
    status=0
    start_run || status=$?
    if ((dry_run)); then return 0; fi
    case $status in
      0)
        if is_done; then
          say "the run is done: $workdir"
        else
          say "the run was stopped before its end; the same command goes on"
        fi
        return 0
        ;;
      2)
        say "the run was refused; its message says why"
        return 2
        ;;
      3)
        say "the run cannot go on as it is; its message names the report"
        return 3
        ;;
    esac
    say "the run ended with code $status"
    if ((stopping)) || ! may_restart; then return 1; fi
  done
}
