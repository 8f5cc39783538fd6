-- docs/policies.md: its policies load and pass their selftests, and its commands answer as shown.
local cluster = require "spec.support.cluster"
local proc = require "spec.support.proc"

local TEXT = assert(proc.read_file("docs/policies.md"))

-- The blocks (four blanks in front) behind a line <!-- WORD -->: {word, text}, in their order.
local function blocks()
  local list, armed, block = {}, nil, nil
  local function close()
    if block then list[#list + 1] = { word = block.word, text = table.concat(block, "\n") } end
    armed, block = nil, nil
  end
  for line in (TEXT .. "\n"):gmatch("([^\n]*)\n") do
    local word, code = line:match("^<!%-%- (.*) %-%->$"), line:match("^    (.*)$")
    if word then
      close()
      armed = word
    elseif armed and code then
      block = block or { word = armed }
      block[#block + 1] = code
    elseif line == "" then
      if block then block[#block + 1] = "" end
    else
      close()
    end
  end
  return list
end

-- The commands of a block and what each answers.
local function examples(text)
  local list = {}
  for line in text:gmatch("[^\n]+") do
    local command = line:match("^%$ (.*)$")
    if command then
      list[#list + 1] = { command = command, answer = {} }
    else
      table.insert(list[#list].answer, line)
    end
  end
  return list
end

-- Lines as shown; "..." stands for the rest of one.
local function alike(shown, got, where)
  local lines = {}
  for line in got:gmatch("[^\n]+") do lines[#lines + 1] = line end
  assert.equal(#shown, #lines, where .. "\n" .. got)
  for i, line in ipairs(shown) do
    local head = line:match("^(.-)%.%.%.$")
    if head then
      assert.equal(head:gsub("%s+$", ""), lines[i]:sub(1, #head):gsub("%s+$", ""), where)
    else
      assert.equal(line, lines[i], where)
    end
  end
end

describe("docs/policies.md", function()
  it("shows policies and commands that work", cluster.scenario(function(t)
    local tried, run = 0, 0
    local folder = t:folder("examples")
    local m
    for _, block in ipairs(blocks()) do
      local name = block.word:match("^policy: (.*)$")
      if name then
        proc.write_file(("%s/%s.lua"):format(folder, name), block.text)
        m = m or t:cluster(1)[1]
        local result = m:cli("policy", "test", ("%s/%s.lua"):format(folder, name))
        assert.equal(0, result.code, result.out .. result.err)
        tried = tried + 1
      elseif block.word == "run" then
        local other = t:manager():start()
        other:json("manager", "init")
        for _, example in ipairs(examples(block.text)) do
          local result = proc.run({ "sh", "-c", example.command:gsub("symphony ", cluster.symphony .. " ", 1) },
            { cwd = folder, env = { SYMPHONY_SOCKET = other.socket } })
          alike(example.answer, result.out .. result.err, example.command)
          run = run + 1
        end
      end
    end
    assert.is_true(tried >= 2 and run >= 10)
  end))

  it("tells of every policy in contrib, and each passes its selftest in the sandbox", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local n = 0
    for path in proc.run({ "sh", "-c", "ls contrib/policies/*.lua" }).out:gmatch("[^\n]+") do
      local result = m:cli("policy", "test", path)
      assert.equal(0, result.code, path .. "\n" .. result.out .. result.err)
      local name = path:match("([^/]+)%.lua$")
      assert.truthy(TEXT:find(("| `%s.lua` |"):format(name), 1, true), path)
      assert.equal(1, m:json("policy", "set", name, path).version)
      n = n + 1
    end
    assert.equal(6, n)
  end))
end)
