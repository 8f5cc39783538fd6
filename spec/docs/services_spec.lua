-- docs/services.md: the modules that it shows are loaded, and its commands print what stands there.
local cluster = require "spec.support.cluster"
local proc = require "spec.support.proc"
local uv = require "luv"

-- What stands behind <!-- file: NAME --> and <!-- run -->: {{file = name | nil, text}}.
local function blocks()
  local list, block, head = {}, nil, nil
  for line in (assert(proc.read_file "docs/services.md") .. "\n"):gmatch("([^\n]*)\n") do
    local comment = line:match("^<!%-%- (.*) %-%->$")
    local code = line:match("^    (.*)$") or (block and line == "" and "")
    if comment then
      list[#list + 1] = block
      head, block = comment, nil
    elseif head and code and (block or code ~= "") then
      block = block or { file = head:match("^file: (.*)$"), text = "" }
      block.text = block.text .. code .. "\n"
    elseif block then
      list[#list + 1], block, head = block, nil, nil
    end
  end
  return list
end

-- A text with "..." for whatever is of the moment, as a pattern.
local function pattern_of(text)
  local escaped = text:gsub("%s+$", ""):gsub("[%^%$%(%)%%%.%[%]%*%+%-%?]", "%%%0"):gsub("%%%.%%%.%%%.", ".*")
  return "^" .. escaped:gsub(" +", " +") .. "%s*$"
end

describe("docs/services.md", function()
  it("shows what happens", cluster.scenario(function(t)
    local dir, count = t:folder "own", { file = 0, command = 0 }
    for _, name in ipairs { "commands", "services" } do assert(uv.fs_mkdir(dir .. "/" .. name, 448)) end
    local list = blocks()
    for _, block in ipairs(list) do
      if block.file then
        count.file = count.file + 1
        proc.write_file(dir .. "/" .. block.file, block.text)
      end
    end
    local m = t:cluster(1, { flags = { "--lua-dir", dir } })[1]
    local w = t:join_workers(1, m, { flags = { "--lua-dir", dir } })
    t:wait_status(w, "ready", m)
    m:json("node", "update", w[1].node_id, "--label-add", "zone=a")
    assert.same({}, m:json("reload").failed)
    local env = { SYMPHONY_SOCKET = m.socket, PATH = cluster.symphony:match("^(.*)/") .. ":" .. os.getenv "PATH" }
    for _, block in ipairs(list) do
      for command, answer in (not block.file and block.text .. "$ " or ""):gmatch("%$ ([^\n]*)\n(.-)%f[%$]") do
        count.command = count.command + 1
        local result = proc.run({ "sh", "-c", command }, { env = env })
        assert.equal(0, result.code, command .. "\n" .. result.out .. result.err)
        assert.truthy(result.out:find(pattern_of(answer)), command .. "\n" .. result.out .. "instead of\n" .. answer)
      end
    end
    assert.same({ file = 2, command = 6 }, count)
  end))
end)
