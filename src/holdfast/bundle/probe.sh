# What holdfast asks of a node, for any POSIX shell. Whoever sends this sets `mark` first; answers are lines NAME=VALUE
# between two lines with the mark, so that what the user's shell prints before is no answer.
export LC_ALL=C PATH="$PATH:/usr/local/bin:/usr/bin:/bin"
unset __PYVENV_LAUNCHER__ # says where a Python is, whatever -I says to it
umask 077
uid=$(id -u)

# A folder in it can be made, written and its files run: trial.NAME=runs, noexec, or why not
trial() {
  if ! said=$( { mkdir -p "$2/bundles"; } 2>&1); then
    echo "trial.$1=${said##*: }"
    return 1
  fi
  file=$2/bundles/.trial.$$
  if ! said=$( { printf '#!/bin/sh\nexit 0\n' >"$file"; } 2>&1); then
    rm -f "$file"
    echo "trial.$1=${said##*: }"
    return 1
  fi
  chmod 700 "$file"
  if "$file" 2>/dev/null; then runs=runs; else runs=noexec; fi
  rm -f "$file"
  echo "trial.$1=$runs"
  [ $runs = runs ]
}

# A folder where anybody may make names is only ours when nobody else could have made it
ours() { [ -n "$(find "$1" -prune -type d -user "$uid" ! -perm -020 ! -perm -002 2>/dev/null)" ]; }

libc() {
  getconf GNU_LIBC_VERSION 2>/dev/null && return
  for loader in /lib/ld-musl-*.so.1; do
    [ -x "$loader" ] && "$loader" 2>&1 | sed -n 's/^Version /musl /p'
  done
}

# Each Python 3 once, however many names it has; first those that we have brought
pythons() {
  seen=
  asks='import sys as s; print("%d.%d.%d" % s.version_info[:3], s.implementation.name, s.maxsize >> 32 > 0, s.abiflags)'
  IFS=:
  for folder in "${place:-/nowhere}"/bundles/python-*/bin $PATH "$HOME/.local/bin" /opt/conda/bin "$HOME"/mini*/bin "$HOME"/.pyenv/versions/*/bin \
    "$HOME"/.local/share/uv/python/cpython-*/bin; do
    unset IFS
    for each in "$folder"/python3 "$folder"/python3.[0-9] "$folder"/python3.[0-9][0-9]; do
      [ -f "$each" ] && [ -x "$each" ] || continue
      real=$(readlink -f "$each" || echo "$each")
      case " $seen " in *" $real "*) continue ;; esac
      seen="$seen $real"
      echo "python=$each $("$each" -I -S -c "$asks" </dev/null 2>/dev/null)"
    done
  done | head -n 16
}

echo "$mark"
echo "now=$(date +%s)"
echo "uid=$uid"
echo "system=$(uname -s)"
echo "machine=$(uname -m)"
echo "libc=$(libc | head -n 1)"
login1=org.freedesktop.login1
echo "logout=$(busctl --timeout=2 get-property $login1 /org/freedesktop/login1 $login1.Manager KillUserProcesses 2>/dev/null)"
home=${HOLDFAST_HOME:-$HOME/.holdfast}
case $home in /*) ;; *) home=$HOME/$home ;; esac
echo "asked=$home"
place=$home
runs=
trial home "$home" || place=
if [ "$runs" = noexec ]; then
  for folder in "/var/tmp/holdfast-$uid" "/tmp/holdfast-$uid"; do
    mkdir "$folder" 2>/dev/null
    if ours "$folder" && trial "${folder%/*}" "$folder"; then
      place=$folder
      break
    fi
  done
fi
# Where the home would be, as far as it is there
at=$home
while [ ! -e "${at:=/}" ]; do at=${at%/*}; done
echo "home=$(cd "$home" 2>/dev/null && pwd -P)"
echo "place=$(cd "$place" 2>/dev/null && [ -n "$place" ] && pwd -P)"
echo "files=$(stat -f -c %T "${place:-/}" 2>/dev/null)"
echo "free=$(df -Pk "${place:-/}" 2>/dev/null | sed -n '$s/.* \([0-9][0-9]*\)  *[0-9-]*% .*/\1/p')"
echo "home_free=$(df -Pk "$at" 2>/dev/null | sed -n '$s/.* \([0-9][0-9]*\)  *[0-9-]*% .*/\1/p')"
for each in "${place:-/nowhere}"/bundles/*/bundle.json; do
  [ -f "$each" ] || continue
  each=${each%/bundle.json}
  echo "bundle=${each##*/}"
done
for each in "${place:-/nowhere}"/bundles/wheels/*.whl; do
  [ -f "$each" ] || continue
  each=${each%.whl}
  echo "wheel=${each##*/}"
done
# What came of a Python that nobody sends any more: who took it is in its name
for each in "${place:-/nowhere}"/bundles/.python-*@"$(uname -n)".part; do
  [ -f "$each/archive" ] || continue
  taker=${each%@*}
  kill -0 "${taker##*.}" 2>/dev/null || echo "half=$(($(wc -c <"$each/archive"))) ${each##*/}"
done
pythons
echo "$mark"
