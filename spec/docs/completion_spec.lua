-- contrib/completion: bash offers every command and option that there is, and no other.
local commands = require "spec.support.commands"
local proc = require "spec.support.proc"

local GLOBAL = { "--socket", "--json", "--timeout", "--help" }

-- What bash offers behind @words, each of them a set's key. The last word is the one that is being typed.
local function offered(cases)
  local script = { "source contrib/completion/symphony.bash" }
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
