-- contrib/completion: the shells offer every command and option that there is, and no other; and what the daemon knows.
local cluster = require "spec.support.cluster"
local commands = require "spec.support.commands"
local proc = require "spec.support.proc"

local GLOBAL = { "--socket", "--json", "--timeout", "--help" }

-- What bash offers behind @words, each of them a set's key. The last word is the one that is being typed.
local function offered(cases)
  local script = { ("PATH=%s:$PATH"):format(cluster.symphony:match("^(.*)/")),
    "source contrib/completion/symphony.bash" }
  for _, words in ipairs(cases) do
    script[#script + 1] = ("COMP_WORDS=(symphony %s) COMP_CWORD=%d; _symphony; echo \"${COMPREPLY[*]}\""):format(
      table.concat(words, " "), #words)
  end
  local result = proc.run({ "bash", "-euc", table.concat(script, "\n") })
  assert.equal(0, result.code, result.err)
  local sets = {}
  for line in result.out:gmatch("([^\n]*)\n") do
    local set = {}
    for word in line:gmatch("%S+") do set[word] = true end
    sets[#sets + 1] = set
  end
  assert.equal(#cases, #sets)
  return sets
end

local function set_of(...)
  local set = {}
  for _, list in ipairs { ... } do
    for _, word in ipairs(list) do set[word] = true end
  end
  return set
end

local function split(text)
  local words = {}
  for word in text:gmatch("%S+") do words[#words + 1] = word end
  return words
end

describe("the completion for bash", function()
  it("knows every command and option, and no other", function()
    local cases, wanted = { { "''" }, { "help", "''" } }, { set_of(commands.names(), GLOBAL, { "--version" }),
      set_of(commands.names()) }
    local function add(text, set)
      local words = split(text)
      words[#words + 1] = "''"
      cases[#cases + 1], wanted[#wanted + 1] = words, set
    end
    for _, command in ipairs(commands.list()) do
      if #command.subs > 0 then
        add(command.words, set_of(command.subs, GLOBAL))
        add("help " .. command.words, set_of(command.subs))
      elseif command.words ~= "help" then
        local options = {}
        for i, option in ipairs(command.options) do options[i] = option.name end
        for _, text in ipairs { command.words, command.alias } do
          local at = #cases + 1
          add("--json --socket /s " .. text, set_of(options, GLOBAL))
          cases[at][#cases[at]] = "--" -- not the files
        end
        for _, option in ipairs(command.options) do
          -- Behind an option that takes a value come values, never options.
          if option.value then add(("%s %s"):format(command.words, option.name), "values") end
        end
      end
    end
    for i, set in ipairs(offered(cases)) do
      local typed = table.concat(cases[i], " ")
      if wanted[i] == "values" then
        assert.is_nil(set["--json"], typed)
      else
        assert.same(wanted[i], set, typed)
      end
    end
    assert.is_true(#cases > 40)
  end)

  it("offers files and roles where they go, and what begins as typed", function()
    local sets = offered { { "--socket", "READ" }, { "kv", "put", "k", "--file", "READ" }, { "cluster", "restore",
      "READ" },
      { "txn", "READ" }, { "token", "create", "--role", "m" }, { "man" }, { "kv", "g" }, { "manager", "init", "--d" } }
    for i = 1, 4 do assert.same(set_of { "README.md" }, sets[i]) end
    for i, word in ipairs { "manager", "manager", "get", "--dev" } do assert.same(set_of { word }, sets[4 + i]) end
  end)
end)

describe("symphony __complete", function()
  local uv = require "luv"

  local function candidates(socket, ...)
    local result = proc.run { cluster.symphony, "__complete", "--socket", socket, ... }
    assert.same({ 0, "" }, { result.code, result.err })
    local set = {}
    for line in result.out:gmatch("([^\n]*)\n") do set[line:match("^[^\t]*")] = line:match("\t(.*)$") or true end
    return set
  end

  local function names(set)
    local list = {}
    for name in pairs(set) do list[#list + 1] = name end
    table.sort(list)
    return list
  end

  local OWN = [[return { name = "greet", summary = "Greets. Somebody.", complete = { colour = { "red", "green" },
    whom = function(typed) return { typed .. "x", typed .. "y", "not what was typed" } end }, commands = {
    { name = "them", run = print, args = function(p)
      p:argument("whom")
      p:argument("where"):argname("NODE"):args("*")
      p:option("-c --colour")
    end } } }]]

  it("knows what the daemon knows", cluster.scenario(function(t)
    local dir = t:folder "own"
    for _, name in ipairs { "commands", "services" } do assert(uv.fs_mkdir(dir .. "/" .. name, 448)) end
    proc.write_file(dir .. "/commands/greet.lua", OWN)
    local idle = t:manager():start()
    assert.truthy(candidates(idle.socket, "node", "inspect", "--")["--json"]) -- no cluster yet, and no word of that
    local m = t:cluster(1, { flags = { "--lua-dir", dir, "--lua-dir", uv.fs_realpath "contrib" } })[1]
    local at = m.socket
    local w = t:join_workers(1, m)
    for id in pairs(t:nodes(m)) do
      if id ~= w[1].node_id then m:json("node", "update", id, "--name", "first") end
    end
    for _, key in ipairs { "alpha/1", "alpha/2", "beta" } do m:json("kv", "put", key, "x") end
    m:json("kv", "put", "odd key", "x")
    m:json("process", "run", "web", "--", "/bin/sleep", "9")
    local request = t:worker():start()
    local call = proc.begin { cluster.symphony, "--socket", request.socket, "block", "join", m:remote() }
    local pending = cluster.wait_for("the request", 10, function() return m:json("node", "pending")[1] end)
    for _, case in ipairs {
      { { "node", "inspect", "" }, { "first", w[1].name } },
      { { "node", "inspect", "first", "" }, { "first", w[1].name } },
      { { "node", "update", "fi" }, { "first" } },
      { { "events", "--node", w[1].name:sub(1, 3) }, { w[1].name } },
      { { "manager", "remove", "" }, { "first" } },
      { { "kv", "get", "al" }, { "alpha/1", "alpha/2" } },
      { { "kv", "ls", "" }, { "alpha/1", "alpha/2", "beta" } }, -- one that needs quotes is left out
      { { "node", "approve", "" }, { pending.id } },
      { { "gr" }, { "greet" } },
      { { "help", "greet", "" }, { "them" } },
      { { "greet", "them", "--col" }, { "--colour" } },
      { { "greet", "them", "--colour", "" }, { "green", "red" } },
      { { "greet", "them", "-c", "r" }, { "red" } },
      { { "greet", "them", "a" }, { "ax", "ay" } },
      { { "greet", "them", "a", "b", "" }, { "first", w[1].name } },
      { { "process", "inspect", "" }, { "web" } },
      { { "process", "run", "w" }, {} },
      { { "process", "run", "w", "--restart", "" }, { "always", "never", "on-failure" } },
      { { "process", "update", "web", "--", "--" }, {} },
      { { "nothing", "" }, {} },
      { { "kv", "get", "k", "\255\n" }, {} },
    } do
      local got = names(candidates(at, table.unpack(case[1])))
      table.sort(case[2])
      assert.same(case[2], got, table.concat(case[1], " "))
    end
    assert.truthy(candidates(at, "").kv)
    assert.equal("Greets", candidates(at, "greet").greet)
    assert.truthy(candidates(at, "process", "run", "x", "--", "/bin/")[":files"])
    -- A worker, and a socket that nobody answers at, know the commands.
    assert.truthy(candidates(w[1].socket, "bl").block)
    m:kill("sigstop")
    m.paused = true
    assert.truthy(candidates(at, "ev").events)
    m:kill("sigcont")
    m.paused = nil
    assert.truthy(candidates(t.root .. "/none", "ev").events)
    call.process:kill("sigkill")
    -- Without a quorum too.
    local others = { idle, t:manager():start() }
    for _, other in ipairs(others) do other:json("manager", "join", m:remote(), "--token", t.tokens.manager) end
    t:wait_voters(3, m)
    for _, other in ipairs(others) do other:crash() end
    assert.same({ "alpha/1", "alpha/2" }, names(candidates(at, "kv", "get", "al")))
  end))

  -- What says which words @line of a shell may go on with; @one of them, at least.
  local shells = {
    bash = function(bin, line)
      local words = {}
      for word in line:gsub("[=:]", " %0 "):gmatch("%S+") do words[#words + 1] = ("'%s'"):format(word) end
      words[#words + 1] = "''"
      return { "bash", "-euc", ([[
        PATH=%s:$PATH
        source contrib/completion/symphony.bash
        COMP_WORDS=(%s) COMP_CWORD=%d
        _symphony
        printf '%%s\n' "${COMPREPLY[@]}"]]):format(bin, table.concat(words, " "), #words - 1) }
    end,
    zsh = function(bin, line, one)
      -- In a terminal of its own, as nothing else runs its completions.
      return { "zsh", "-fc", ([[
        path=(%s $path)
        zmodload zsh/zpty
        zpty z zsh -f -i
        zpty -w z 'PS1=; PROMPT_EOL_MARK=; unsetopt zle_bracketed_paste; LISTMAX=1000'
        zpty -w z 'fpath=(contrib/completion $fpath); autoload -Uz compinit; compinit -D'
        zpty -w z 'print READY-$((1+1))'
        zpty -r -m z x '*READY-2*'
        zpty -w -n z '%s'$'\t'
        zpty -r -m z x '*%s*' && print -r -- $x
        zpty -d z]]):format(bin, line, one) }
    end,
    fish = function(bin, line)
      local script = "set -p PATH %s; source contrib/completion/symphony.fish; complete -C '%s'"
      return { "fish", "--no-config", "-c", script:format(bin, line) }
    end,
  }

  for name, command in pairs(shells) do
    it("is asked by " .. name, cluster.scenario(function(t)
      if proc.run({ "sh", "-c", "command -v " .. name }).code ~= 0 then
        pending(name .. " is not installed here")
        return
      end
      local function offers(line, ...)
        local result = proc.run(command(cluster.symphony:match("^(.*)/"), line, (...)),
          { timeout = 20, env = { HOME = t.root } })
        for _, word in ipairs { ... } do
          assert.truthy(result.out:find("%f[%w]" .. word .. "%f[%W]"), line .. "\n" .. result.out .. result.err)
        end
      end
      offers("symphony node ", "update", "ls", "inspect", "rm", "pending", "approve", "reject")
      -- Whatever stands before the command; and the socket as people write it.
      local m = t:cluster(1)[1]
      m:json("node", "update", m:json("node", "ls")[1].node_id, "--name", "somebody")
      local below = m.socket:sub(#t.root + 1)
      for _, socket in ipairs { "--socket " .. m.socket, "--socket=" .. m.socket, "--json --socket ~" .. below,
        '--socket "$HOME' .. below .. '" --timeout 5' } do
        offers(("symphony %s node inspect "):format(socket), "somebody")
      end
    end))
  end

  it("may stand behind the options", function()
    local result = proc.run { cluster.symphony, "--json", "--socket", "/none", "__complete", "kv", "g" }
    assert.same({ 0, "get\tShow a key's value\n" }, { result.code, result.out })
  end)
end)
